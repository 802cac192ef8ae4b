"""Are the labels of a data set what they are taken for? Asked before every training.

One force of an unconverged calculation among two hundred good frames makes the label scale hundreds
of times too large and ruins a training without a word; kcal/mol read as eV does it more quietly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from dcase.boxes import neighbours_of
from dcase.data.dataset import AtomicDataset
from dcase.data.held import wholly_free
from dcase.data.stress_check import stress_doubts
from dcase.data.unit_check import unit_doubts
from dcase.errors import OptionError

Z_LIMIT = 10.0
"""Robust z-score from which a label is an outlier. Energies of thermal samples stay below 6."""

CLOSE = 0.5
"""Atoms nearer than this times the sum of their covalent radii lie on top of each other."""

_GAP = 2.0
"""What is an outlier is this times as far off as the farthest that belongs to the rest: the first
frames of a relaxation are far from the median, too, but one after the other."""

# A frame's energy must be off by this times Z_LIMIT, eV/atom, whatever the spread.
_ENERGY_FLOOR = 5e-3
_STRAIN = 3.0  # times the energy that forces explain, up to which they do
_SAME_ENERGY = 1e-3  # eV/atom, within which two calculations of one frame agree
# The largest force of a frame must exceed the median one by a factor of 10, and need not exceed it
# by more than 1000: relaxations have a wide spread.
_LOG_FORCE = (np.log(10.0) / Z_LIMIT, np.log(1000.0) / Z_LIMIT)
_SMALLEST_FORCE = 1e-3  # eV/A
_NET_SHARE = 0.1  # of what random forces would add up to
_NET_FORCE = 5e-3  # eV/A per atom: what grids of plane-wave codes leave is smaller
_DENSE = 64  # atoms, up to which all distances are the faster way
_NAMED = 5  # frames, at most, in a line


@dataclass(frozen=True)
class Finding:
    """Something about some frames.

    Attributes:
        kind: ``"energy"``, ``"forces"``, ``"overlap"``, ``"net force"``, ``"duplicates"``,
            ``"units"`` or ``"max force"``.
        frames: Their indices.
        text: One line, frames and values named.
        outlier: Whether these frames are better left out (``--drop-outliers``).
    """

    kind: str
    frames: tuple[int, ...]
    text: str
    outlier: bool = False


@dataclass(frozen=True)
class LabelCheck:
    """What was found, and the numbers to draw.

    Attributes:
        findings: In order of weight; empty if all is well.
        energy: Energy less that of the composition, per atom, eV, shape [n_frames], or None.
        energy_z: Its robust z-score, or None.
        force: Largest force on a free atom of each frame, eV/A, or None.
        force_z: The robust z-score of its logarithm, or None.
    """

    findings: tuple[Finding, ...]
    energy: np.ndarray | None = None
    energy_z: np.ndarray | None = None
    force: np.ndarray | None = None
    force_z: np.ndarray | None = None
    frames: int = 0
    skipped: tuple[str, ...] = field(default=())

    def outliers(self) -> np.ndarray:
        """Frames that are better left out, ascending, int64."""
        found = {frame for one in self.findings if one.outlier for frame in one.frames}
        return np.array(sorted(found), dtype=np.int64)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "frames": self.frames,
            "outliers": self.outliers().tolist(),
            "findings": [asdict(one) for one in self.findings],
            "not_checked": list(self.skipped),
        }


def check_labels(
    dataset: AtomicDataset, *, max_force: float | None = None, names: Sequence[int] | None = None
) -> LabelCheck:
    """Look for labels that a training should not be given.

    Energies are compared per atom after the composition's share is taken off (least absolute
    deviations, which outliers do not move), forces by the logarithm of each frame's largest; both
    by the robust z-score (x - median) / (1.4826 MAD) of Iglewicz and Hoaglin (How to Detect and
    Handle Outliers, 1993), beyond :data:`Z_LIMIT`. Further: atoms on top of each other, forces that
    do not add up to zero, frames that occur twice, units (:mod:`dcase.data.unit_check`), and sign
    and unit of the stress (:mod:`dcase.data.stress_check`).

    Args:
        dataset: The frames.
        max_force: Frames with a larger force component, eV/A, are outliers, too.
        names: What to call the frames; default: 0, 1, ...

    Raises:
        OptionError: If ``max_force`` is not positive.
    """
    if max_force is not None and not max_force > 0:
        raise OptionError(f"the largest force must be positive, got {max_force:g}")
    label = _Names(range(len(dataset)) if names is None else names)
    energy, energy_z, skipped = _energies(dataset)
    force = largest_forces(dataset)
    force_z = None if force is None else force_scores(force)
    findings = [
        *(Finding("units", (), doubt) for doubt in unit_doubts(dataset)),
        *(Finding("stress", (), doubt) for doubt in stress_doubts(dataset)),
        *_energy_outliers(dataset, energy, energy_z, label),
        *_force_outliers(dataset, force, force_z, max_force, label),
        *_overlaps(dataset, label),
        *_net_forces(dataset, label),
        *_duplicates(dataset, label),
    ]
    return LabelCheck(
        tuple(findings), energy, energy_z, force, force_z, len(dataset), tuple(skipped)
    )


def robust_z(values: np.ndarray, least: float = 0.0, most: float = np.inf) -> np.ndarray:
    """(x - median) / (1.4826 MAD), the scale kept between ``least`` and ``most``.

    Args:
        values: Any shape [n].
        least: Smallest scale; a scale of zero gives scores of zero.
        most: Largest scale.
    """
    distance = values - np.median(values)
    scale = min(max(1.4826 * _spread(values), least), most)
    return distance / scale if scale > 0 else np.zeros_like(distance)


def largest_forces(dataset: AtomicDataset) -> np.ndarray | None:
    """Norm of the largest force of each frame along free directions, eV/A, [n_frames], or None."""
    if dataset.forces is None:
        return None
    forces, axes = dataset.forces, dataset.directions
    if axes is not None:
        forces = np.einsum("nij,nj->ni", axes, forces)
    return np.maximum.reduceat(np.linalg.norm(forces, axis=1), dataset.ptr[:-1])


def force_scores(largest: np.ndarray) -> np.ndarray:
    """Robust z-scores of the logarithm of each frame's largest force."""
    return robust_z(np.log(np.maximum(largest, _SMALLEST_FORCE)), *_LOG_FORCE)


def good_frames(dataset: AtomicDataset) -> np.ndarray:
    """Frames whose forces and energies are no outliers, bool, shape [n_frames]."""
    good = np.ones(len(dataset), dtype=bool)
    force = largest_forces(dataset)
    if force is not None:
        good[_outlying(force, force_scores(force))] = False
    energy, score, _ = _energies(dataset)
    if energy is not None and score is not None:
        good[_energy_frames(dataset, energy, score)] = False
    return good


def composition(dataset: AtomicDataset) -> np.ndarray:
    """Atoms of each element in each frame, in order of ``dataset.elements``."""
    counts = np.zeros((len(dataset), len(dataset.elements)))
    frame_of_atom = np.repeat(np.arange(len(dataset)), dataset.n_atoms)
    np.add.at(counts, (frame_of_atom, np.searchsorted(dataset.elements, dataset.numbers)), 1.0)
    return counts


# ------------------------------------------------------------------------------- what is looked at


def _energies(
    dataset: AtomicDataset,
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """Energy per atom less the composition's, its robust z-score, what was not looked at."""
    if dataset.energies is None or dataset.info.quantity != "energy":
        return None, None, []
    counts = composition(dataset)
    kinds = np.linalg.matrix_rank(counts)
    if len(dataset) < 4 * max(kinds, 1):
        why = f"energies ({len(dataset)} frames of {kinds} independent compositions: too few)"
        return None, None, [why]
    size = dataset.n_atoms
    base = float(np.median(dataset.energies / size))
    rest = (dataset.energies - base * size) / size
    shares = counts / size[:, None]
    weights = np.ones(len(dataset))
    residual = rest
    for _ in range(30):  # least absolute deviations, by weights
        root = np.sqrt(weights)
        found, *_ = np.linalg.lstsq(shares * root[:, None], rest * root, rcond=1e-8)
        residual = rest - shares @ found
        weights = 1.0 / np.maximum(np.abs(residual), 1e-2 * _spread(residual) + 1e-12)
        weights /= weights.max()
    return residual, robust_z(residual, _ENERGY_FLOOR), []


def _outlying(size: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Frames beyond the limit and apart from the rest, the largest first.

    Args:
        size: How far off, shape [n_frames], not negative.
        score: The same as a robust z-score.
    """
    order = np.argsort(size, kind="stable")
    beyond = np.flatnonzero((score[order] > Z_LIMIT) & (size[order] > 0))
    for place in beyond:
        if place == 0 or size[order[place]] > _GAP * size[order[place - 1]]:
            return order[place:][::-1]
    return order[:0]


def _energy_frames(dataset: AtomicDataset, energy: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Frames whose energy is an outlier that their forces do not explain, the farthest first.

    A strained frame has a high energy and large forces: near a minimum the one goes with the square
    of the other. A calculation that went to another state has only the energy.
    """
    frames = _outlying(np.abs(energy), np.abs(score))
    if dataset.forces is None or not len(frames):
        return frames
    starts = dataset.ptr[:-1]
    square = np.add.reduceat((dataset.forces**2).sum(axis=1), starts) / dataset.n_atoms
    above = energy - np.quantile(energy, 0.05)
    ratio = np.median(above / np.maximum(square, _SMALLEST_FORCE**2))
    explained = (above > 0) & (above < _STRAIN * ratio * square)
    return frames[~explained[frames]]


def _spread(values: np.ndarray) -> float:
    return float(np.median(np.abs(values - np.median(values))))


def _energy_outliers(
    dataset: AtomicDataset, energy: np.ndarray | None, score: np.ndarray | None, label: _Names
) -> Iterator[Finding]:
    if energy is None or score is None:
        return
    frames = _energy_frames(dataset, energy, score)
    yield from label.found(
        "energy",
        frames,
        [f"{energy[f]:+.3g}" for f in frames],
        f"far from what the composition gives: {{}} eV/atom (robust z-score beyond {Z_LIMIT:g})",
        outlier=True,
    )


def _force_outliers(
    dataset: AtomicDataset,
    force: np.ndarray | None,
    score: np.ndarray | None,
    max_force: float | None,
    label: _Names,
) -> Iterator[Finding]:
    if force is None or score is None or dataset.forces is None:
        return
    frames = _outlying(force, score)
    yield from label.found(
        "forces",
        frames,
        [f"{force[f]:.4g}" for f in frames],
        f"with forces out of line: {{}} eV/A, the median frame's largest is {np.median(force):.3g}",
        outlier=True,
    )
    if max_force is not None:
        largest = np.maximum.reduceat(dataset.largest_free_force(), dataset.ptr[:-1])
        frames = np.flatnonzero(largest > max_force)
        yield from label.found(
            "max force",
            frames,
            [f"{largest[f]:.4g}" for f in frames],
            f"with a force component above {max_force:g} eV/A: {{}} eV/A",
            outlier=True,
        )


def _overlaps(dataset: AtomicDataset, label: _Names) -> Iterator[Finding]:
    close = list(close_pairs(dataset))
    values = [
        f"{chemical_symbols[dataset.numbers[dataset.ptr[f] + i]]}{i}-"
        f"{chemical_symbols[dataset.numbers[dataset.ptr[f] + j]]}{j} at {d:.3g}"
        for f, i, j, d in close
    ]
    frames = [frame for frame, *_ in close]
    text = "with atoms on top of each other: {} A"
    yield from label.found("overlap", frames, values, text, outlier=True)


def close_pairs(dataset: AtomicDataset) -> Iterator[tuple[int, int, int, float]]:
    """Frame, atoms and distance (A) of the pair of each frame that is closest for its radii.

    Only frames in which that is below :data:`CLOSE` times the sum of the covalent radii.
    """
    counts = dataset.n_atoms
    nothing = np.zeros((len(dataset), 3), dtype=bool)
    periodic = (nothing if dataset.pbc is None else dataset.pbc).any(axis=1)
    plain = ~periodic & (counts <= _DENSE)
    found: list[tuple[int, int, int, float]] = []
    for size in np.unique(counts[plain]):
        frames = np.flatnonzero(plain & (counts == size))
        step = max(1, 1_000_000 // int(size) ** 2)
        for start in range(0, len(frames), step):
            found += _close_dense(dataset, frames[start : start + step], int(size))
    for frame in np.flatnonzero(~plain):
        found += _close_listed(dataset, int(frame))
    yield from sorted(found)


def _close_dense(
    dataset: AtomicDataset, frames: np.ndarray, size: int
) -> Iterator[tuple[int, int, int, float]]:
    if size < 2:
        return
    atoms = dataset.ptr[frames][:, None] + np.arange(size)
    first, second = np.triu_indices(size, 1)
    x = dataset.positions[atoms]
    distance = np.linalg.norm(x[:, first] - x[:, second], axis=-1)
    radii = covalent_radii[dataset.numbers[atoms]]
    ratio = distance / (radii[:, first] + radii[:, second])
    closest = ratio.argmin(axis=1)
    for row in np.flatnonzero(ratio.min(axis=1) < CLOSE):
        pair = closest[row]
        yield int(frames[row]), int(first[pair]), int(second[pair]), float(distance[row, pair])


def _close_listed(dataset: AtomicDataset, frame: int) -> Iterator[tuple[int, int, int, float]]:
    atoms = dataset.frame(frame)
    atoms.calc = None
    radii = covalent_radii[atoms.numbers]
    first, second, distance = neighbours_of(atoms, 2 * CLOSE * float(radii.max()))
    ratio = distance / (radii[first] + radii[second])
    if len(ratio) and ratio.min() < CLOSE:
        pair = int(ratio.argmin())
        i, j = sorted((int(first[pair]), int(second[pair])))
        yield frame, i, j, float(distance[pair])


def _net_forces(dataset: AtomicDataset, label: _Names) -> Iterator[Finding]:
    """Forces add up to zero where nothing holds the atoms or pulls at them."""
    if dataset.forces is None:
        return
    starts = dataset.ptr[:-1]
    net = np.linalg.norm(np.add.reduceat(dataset.forces, starts, axis=0), axis=1)
    random = np.sqrt(np.add.reduceat((dataset.forces**2).sum(axis=1), starts))
    frames = np.flatnonzero((net > _NET_SHARE * random) & (net > _NET_FORCE * dataset.n_atoms))
    axes = dataset.directions
    if axes is not None:
        held = np.logical_or.reduceat(~wholly_free(axes), starts)
        frames = frames[~held[frames]]
    frames = frames[np.argsort(-net[frames])]
    yield from label.found(
        "net force",
        frames,
        [f"{net[f]:.3g}" for f in frames],
        "whose forces do not add up to zero: {} eV/A (held atoms without a mark, an outer field, "
        "or a spoilt force)",
    )


def _duplicates(dataset: AtomicDataset, label: _Names) -> Iterator[Finding]:
    first: dict[bytes, int] = {}
    pairs = []
    for frame, key in enumerate(frame_keys(dataset, decimals=6)):
        if key in first:
            pairs.append((first[key], frame))
        else:
            first[key] = frame
    if not pairs:
        return
    unlike = [
        (a, b)
        for a, b in pairs
        if dataset.energies is not None
        and abs(dataset.energies[a] - dataset.energies[b])
        > _SAME_ENERGY * (dataset.ptr[a + 1] - dataset.ptr[a])
    ]
    frames = [b for _, b in pairs]
    values = [f"= {label.name(a)}" for a, _ in pairs]
    text = "that occur before: {}"
    if unlike:
        a, b = unlike[0]
        assert dataset.energies is not None
        text += (
            f"; {len(unlike)} of them with another energy (frame {label.name(b)} by "
            f"{dataset.energies[b] - dataset.energies[a]:+.3g} eV)"
        )
    yield from label.found("duplicates", frames, values, text)


def frame_keys(dataset: AtomicDataset, decimals: int = 3) -> Iterator[bytes]:
    """A digest of each structure (elements, positions, cell), 8 bytes: equal ones have one key.

    Args:
        dataset: The frames.
        decimals: Digits after the point that count, A.
    """
    for frame in range(len(dataset)):
        atoms = slice(int(dataset.ptr[frame]), int(dataset.ptr[frame + 1]))
        digest = hashlib.blake2b(dataset.numbers[atoms].astype("<i8").tobytes(), digest_size=8)
        # Adding zero turns -0.0 into 0.0.
        digest.update((np.round(dataset.positions[atoms], decimals) + 0.0).astype("<f8").tobytes())
        if dataset.cells is not None and dataset.pbc is not None and dataset.pbc[frame].any():
            digest.update((np.round(dataset.cells[frame], decimals) + 0.0).astype("<f8").tobytes())
        yield digest.digest()


_Frames = Sequence[int] | np.ndarray


class _Names:
    """What frames are called in a line."""

    def __init__(self, names: Sequence[int]) -> None:
        self._names = names

    def name(self, frame: int) -> int:
        return int(self._names[frame])

    def found(
        self, kind: str, frames: _Frames, values: Sequence[str], text: str, *, outlier: bool = False
    ) -> Iterator[Finding]:
        """The finding about these frames, if there are any; ``{}`` in ``text`` is their list."""
        if len(frames):
            count = "1 frame" if len(frames) == 1 else f"{len(frames)} frames"
            line = f"{count} {text.format(self._listed(frames, values))}"
            yield Finding(kind, tuple(map(int, frames)), line, outlier)

    def _listed(self, frames: _Frames, values: Sequence[str]) -> str:
        listed = [
            f"frame {self.name(f)} ({value})" if not value.startswith("=") else
            f"frame {self.name(f)} {value}"
            for f, value in list(zip(frames, values, strict=True))[:_NAMED]
        ]  # fmt: skip
        more = len(frames) - len(listed)
        return ", ".join(listed) + (f" and {more} more" if more else "")

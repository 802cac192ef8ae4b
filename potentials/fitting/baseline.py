"""What a network has to beat: the mean energy, atomic energies, and a linear pair potential.

The pair potential of :mod:`dcase.potentials.fitting.linear_potential` is linear in its weights
w, and so are its forces. Least squares with a ridge, in closed form and float64:

    min_w  rho mean_f (E_f - Ê_f)^2  +  mean_f 1/n_f sum_i |F_i - F̂_i|^2  +  lambda |w|^2

    equation                 variable
    w[{z, z'}, k]            weights [channels, size], in the equations one vector [columns]
    E0[z]                    offsets; projected out of the fit, the ridge does not touch them
    rho                      energy_weight (targets "energy", "forces": one term alone, of weight 1)
    lambda                   ridge: the one with the smallest loss on the validation frames

The default has about 1160 parameters, as the baseline of the report that it stands in for
(Oesch, Loan and Ha, Project Machine Learning, TU Berlin 2024, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import split
from dcase.errors import DataError, OptionError
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.fitting.linear_potential import LinearPotential, PairBasis
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.quantity import quantity_of
from dcase.rescaling import LabelScale, fit_offsets, offset_energies

KINDS = ("mean", "composition", "pairs")
TARGETS = ("energy", "forces", "energy+forces")
PARAMETERS = 1160
CUTOFF = 6.0
LEAST_WIDTH = 0.15  # A: narrower Gaussians would only follow the noise
RIDGES = 10.0 ** np.arange(-13.0, 0.1, 0.5)  # times the largest eigenvalue


def fit_baseline(
    train: AtomicDataset,
    target: str = "energy",
    *,
    kind: str = "pairs",
    validation: AtomicDataset | None = None,
    cutoff: float = CUTOFF,
    num_parameters: int = PARAMETERS,
    energy_weight: float = 0.01,
    ridge: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> LinearPotential:
    """Fit a baseline in closed form.

    Args:
        train: Labelled frames; molecules may differ, and may be periodic.
        target: ``"energy"``, ``"forces"`` or ``"energy+forces"``: what ``"pairs"`` is fitted to.
            Atomic energies come from the energies in any case, where there are some.
        kind: ``"pairs"``; ``"composition"``: atomic energies alone; ``"mean"``: the mean energy.
            The last two know no forces, and predict 0 for them.
        validation: Decide on the ridge; default: a tenth of ``train`` is put aside for that. The
            baseline also knows their elements, as far as can be said without training frames.
        cutoff: A.
        num_parameters: The number of Gaussians is the one that comes closest to it.
        energy_weight: rho, in 1/A^2, of ``"energy+forces"``.
        ridge: lambda, to give it rather than to choose it; then all of ``train`` is fitted.
        seed: Of the frames that are put aside.
        batch_size: Frames at a time; the energy features of all frames are kept in memory (8 bytes
            times frames times parameters).

    Returns:
        A potential that :func:`dcase.potentials.fitting.evaluation.evaluate_potential` accepts.

    Raises:
        OptionError: For an unknown kind or target, or a size that is not positive.
        DataError: If a label that the target needs is missing.
    """
    _check_numbers(target, kind, cutoff, num_parameters, energy_weight, ridge)
    for part in (train, validation) if validation is not None else (train,):
        _check_labels(part, target, kind)
    quantity = quantity_of(train)
    elements = sorted({*train.elements, *(validation.elements if validation is not None else ())})
    about: dict[str, Any] = {"level_of_theory": train.info.level_of_theory, "quantity": quantity}
    if kind == "mean":
        mean = 0.0 if train.energies is None else float(train.energies.mean())
        return LinearPotential(kind, elements, constant=mean, **about)
    if kind == "composition":
        return LinearPotential(kind, elements, offsets=_start(train, elements), **about)
    if validation is None and ridge is None:
        if len(train) < 2:
            raise DataError("one frame cannot both be fitted and decide on the ridge; give a ridge")
        parts = split(len(train), len(train) - max(1, len(train) // 10), 0, seed)
        train, validation = train.subset(parts.train), train.subset(parts.test)
    basis = pair_basis(elements, cutoff, num_parameters)
    atomic = _AtomicEnergies.fit(train, elements)
    weights = {
        "energy": (1.0, 0.0),
        "forces": (0.0, 1.0),
        "energy+forces": (energy_weight, 1.0),
    }[target]
    here = _quadratic(train, basis, atomic, weights, batch_size, fit=True)
    values, vectors = np.linalg.eigh(here.matrix)
    projected = vectors.T @ here.vector

    def solve(strength: float) -> np.ndarray:
        return vectors @ (projected / (np.maximum(values, 0.0) + strength))

    if ridge is None:
        assert validation is not None
        there = _quadratic(validation, basis, atomic, weights, batch_size)
        # Nothing varies in a single frame's energy: then any ridge gives weights of 0.
        candidates = RIDGES * (values[-1] if values[-1] > 0 else 1.0)
        ridge = float(min(candidates, key=lambda strength: there.loss(solve(strength))))
    w = solve(ridge)
    return LinearPotential(
        kind,
        elements,
        offsets=atomic.given(w),
        basis=basis,
        weights=torch.as_tensor(w).view(basis.channels, basis.size),
        ridge=ridge,
        **about,
    )


def pair_basis(elements: list[int], cutoff: float, num_parameters: int) -> PairBasis:
    """The basis whose weights and atomic energies come closest to a number of parameters."""
    channels = len(elements) * (len(elements) + 1) // 2
    size = max(2, round((num_parameters - len(elements)) / channels))
    return PairBasis(tuple(elements), cutoff, size, max(cutoff / size, LEAST_WIDTH))


def _start(train: AtomicDataset, elements: list[int]) -> dict[int, float]:
    """Atomic energies by least squares, eV; all 0 where there are no energies."""
    if train.energies is None:
        return dict.fromkeys(elements, 0.0)
    return fit_offsets(train, "atomic", elements, quantity_of(train).atom_weights(train))


def _check_numbers(
    target: str,
    kind: str,
    cutoff: float,
    num_parameters: int,
    energy_weight: float,
    ridge: float | None,
) -> None:
    for word, value, allowed in (("kind", kind, KINDS), ("target", target, TARGETS)):
        if value not in allowed:
            raise OptionError(f"{word} must be one of {', '.join(allowed)}; got {value!r}")
    if not 1.0 <= cutoff < float("inf"):
        raise OptionError(f"the cutoff must be at least 1 A, got {cutoff}")
    if num_parameters < 1:
        raise OptionError(f"a baseline needs at least one parameter, got {num_parameters}")
    for word, number in (("energy weight", energy_weight), ("ridge", ridge)):
        if number is not None and not 0.0 < number < float("inf"):
            raise OptionError(f"the {word} must be positive, got {number}")


def _check_labels(dataset: AtomicDataset, target: str, kind: str) -> None:
    quantity, forces = quantity_of(dataset), dataset.forces
    if dataset.energies is None and (forces is None or "energy" in target):
        raise DataError("the dataset has no energies to fit a baseline to")
    if kind == "pairs" and "forces" in target and (forces is None or not quantity.is_energy):
        raise DataError("the dataset has no forces; fit the baseline to the energy")
    if kind != "mean" and not quantity.linear:
        raise OptionError(f"{quantity} is no sum over atoms; its only baseline is the mean")


# ------------------------------------------------------------------------------------------------
# Equations


@dataclass
class _AtomicEnergies:
    """What composition explains of the energies and of the features; free of the ridge.

    With counts Z [n_frames, n_elements] and their pseudo-inverse Z^+, energies e and features Phi
    are replaced by ``e - Z Z^+ e`` and ``Phi - Z Z^+ Phi``; then ``E0 = Z^+ (e - Phi w)``.

    Attributes:
        elements: Atomic numbers, ascending.
        start: Atomic energies that are subtracted first, lest their size cost digits, eV.
        inverse: ``Z^+``, shape [n_elements, n_frames].
        of_energies: ``Z^+ e``, eV, shape [n_elements].
        of_features: ``Z^+ Phi``, shape [n_elements, columns].
    """

    elements: list[int]
    start: dict[int, float]
    inverse: np.ndarray | None
    of_energies: np.ndarray
    of_features: np.ndarray | None = None

    @staticmethod
    def fit(train: AtomicDataset, elements: list[int]) -> _AtomicEnergies:
        """From the energies of the training frames; all zero where there are none."""
        start = _start(train, elements)
        if train.energies is None:
            return _AtomicEnergies(elements, start, None, np.zeros(0))
        inverse = np.linalg.pinv(_counts(train, elements), rcond=1e-8)
        per_atom = quantity_of(train).atom_weights(train)
        rest = train.energies - offset_energies(train, start, per_atom)
        return _AtomicEnergies(elements, start, inverse, inverse @ rest)

    def given(self, w: np.ndarray) -> dict[int, float]:
        """E0 by atomic number, eV, for weights [columns]."""
        if self.of_features is None:
            return dict(self.start)
        change = self.of_energies - self.of_features @ w
        return {z: self.start[z] + float(c) for z, c in zip(self.elements, change, strict=True)}


@dataclass
class _Quadratic:
    """A loss ``w^T A w - 2 b^T w + c``.

    Attributes:
        matrix: A, shape [columns, columns].
        vector: b, shape [columns].
        constant: c.
    """

    matrix: np.ndarray
    vector: np.ndarray
    constant: float = 0.0

    @staticmethod
    def zero(columns: int) -> _Quadratic:
        """No equations yet."""
        return _Quadratic(np.zeros((columns, columns)), np.zeros(columns))

    def loss(self, w: np.ndarray) -> float:
        """Of the weights [columns]."""
        return float(w @ (self.matrix @ w) - 2.0 * self.vector @ w + self.constant)

    def add(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Add ``|labels - features w|^2`` for features [rows, columns]."""
        self.matrix += features.T @ features
        self.vector += features.T @ labels
        self.constant += float(labels @ labels)

    def add_columns(self, other: _Quadratic, columns: np.ndarray) -> None:
        """Add a loss that knows only these columns."""
        self.matrix[np.ix_(columns, columns)] += other.matrix
        self.vector[columns] += other.vector
        self.constant += other.constant


def _quadratic(
    dataset: AtomicDataset,
    basis: PairBasis,
    atomic: _AtomicEnergies,
    weights: tuple[float, float],
    batch_size: int,
    *,
    fit: bool = False,
) -> _Quadratic:
    """The loss of a dataset; ``weights`` are those of energies and forces, 0 leaves one out.

    Where ``fit``, what composition explains of the features is set in ``atomic``, and the energy
    features are computed even for weight 0: atomic energies depend on them.
    """
    total = _Quadratic.zero(basis.columns)
    energy_features, done = [], 0
    n_elements = len(basis.elements)
    of_element = [_Quadratic.zero(n_elements * basis.size) for _ in basis.elements]
    with_energies = dataset.energies is not None and (weights[0] > 0 or fit)
    per_atom = quantity_of(dataset).atom_weights(dataset)
    for batch in FrameBatches(dataset, basis.cutoff, LabelScale()).in_order(batch_size):
        graph, species = batch.graph, basis.species(batch.graph)
        r = graph.vectors()
        d = torch.linalg.vector_norm(r, dim=1)
        value, slope = basis.functions(d)
        if with_energies:
            shares = None if per_atom is None else torch.as_tensor(per_atom[done:])
            done += graph.n_atoms
            energy_features.append(_energy_features(basis, graph, species, value, shares))
        if weights[1] > 0:
            assert batch.forces is not None
            n_atoms = torch.bincount(graph.system)[graph.system]
            share = torch.sqrt(weights[1] / len(dataset) / n_atoms)
            rows = _force_features(basis, graph, species, slope, r / d.unsqueeze(1))
            labels = batch.forces
            if batch.axes is not None:  # held directions are rows of zeros
                rows, labels = batch.axes @ rows, (batch.axes @ labels.unsqueeze(2)).squeeze(2)
            elif batch.free is not None:
                share = share * batch.free
            rows, labels = rows * share[:, None, None], labels * share[:, None]
            for z, quadratic in enumerate(of_element):
                own = species == z
                quadratic.add(rows[own].flatten(0, 1).numpy(), labels[own].flatten().numpy())
    for z, quadratic in enumerate(of_element):
        channels = basis.channel(torch.tensor(z), torch.arange(n_elements)).numpy()
        columns = channels[:, None] * basis.size + np.arange(basis.size)
        total.add_columns(quadratic, columns.ravel())
    if with_energies:
        assert dataset.energies is not None
        features = np.concatenate(energy_features)
        counts = _counts(dataset, atomic.elements)
        if fit:
            assert atomic.inverse is not None
            atomic.of_features = atomic.inverse @ features
        assert atomic.of_features is not None
        features -= counts @ atomic.of_features
        labels = dataset.energies - offset_energies(dataset, atomic.start, per_atom)
        labels = labels - counts @ atomic.of_energies
        share = np.sqrt(weights[0] / len(dataset))
        total.add(features * share, labels * share)
    return total


def _energy_features(
    basis: PairBasis,
    graph: AtomicGraph,
    species: torch.Tensor,
    value: torch.Tensor,
    shares: torch.Tensor | None,
) -> np.ndarray:
    """dE/dw [n_systems, columns] from phi [n_pairs, size]; ``shares``: atoms' weights, or all 1."""
    rows = value.new_zeros(graph.n_systems * basis.channels, basis.size)
    channel = basis.channel(*species[graph.pairs])
    if shares is not None:
        value = value * (0.5 * shares[graph.pairs].sum(0)).unsqueeze(1)
    rows.index_add_(0, graph.system[graph.pairs[0]] * basis.channels + channel, value)
    return rows.view(graph.n_systems, basis.columns).numpy()


def _force_features(
    basis: PairBasis,
    graph: AtomicGraph,
    species: torch.Tensor,
    slope: torch.Tensor,
    direction: torch.Tensor,
) -> torch.Tensor:
    """dF/dw [n_atoms, 3, n_elements * size] from phi' [n_pairs, size], unit vectors [n_pairs, 3].

    The columns are those of the pairs with each element: the force on an atom depends on no other
    pairs than its own element's, and leaving out these zeros saves most of the work.
    """
    n_elements = len(basis.elements)
    rows = slope.new_zeros(graph.n_atoms * n_elements, 3, basis.size)
    pull = direction.unsqueeze(2) * slope.unsqueeze(1)
    i, j = graph.pairs
    rows.index_add_(0, i * n_elements + species[j], pull)
    rows.index_add_(0, j * n_elements + species[i], pull, alpha=-1.0)
    rows = rows.view(graph.n_atoms, n_elements, 3, basis.size).transpose(1, 2)
    return rows.flatten(2)


def _counts(dataset: AtomicDataset, elements: list[int]) -> np.ndarray:
    """Atoms of each element in each frame, or the sums of their weights, [n_frames, n_elements]."""
    per_atom = quantity_of(dataset).atom_weights(dataset)
    shares = np.ones(len(dataset.numbers)) if per_atom is None else per_atom
    return np.stack(
        [np.add.reduceat((dataset.numbers == z) * shares, dataset.ptr[:-1]) for z in elements],
        axis=1,
    )

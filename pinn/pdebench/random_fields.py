"""PDEBench's random initial states: the published ones, drawn again, and new ones like them.

All one-dimensional tasks share one kind of random profile, a few sines with some cut by a window::

    u(x) = s |sum_j A_j sin(k_j x + phi_j)| w(x)    (|.| and w for some profiles only)

Two of the wave numbers j = 1..K are drawn, with replacement; n_j in {0, 1, 2} says how often, and
``k_j = 2 pi j n_j / L``. Two properties of the published generator are kept because they are in the
published data: a wave that was not drawn leaves the constant ``A_j sin(phi_j)``, and ``L`` is the
distance between the first and the last cell centre, one cell less than the domain, so that the
profile is periodic only up to a step of the size of ``u'(x) dx``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from dcase.errors import DataError
from dcase.pinn.pdebench.threefry import choice, prng_key, randint, split, uniform

CELLS = 1024
"""Cells of the published one-dimensional grids; ``L`` and the ranges below refer to it."""

PUBLISHED = {"advection": 10000, "cfd": 10000, "diffusion-reaction": 1000}
"""Number of published samples."""

_ADVECTION_KEY = 2022
_FLOW_KEYS, _FLOW_FILE = 2020, 1000  # ten keys from 2020 on, a thousand samples of each
_DENSITY, _PRESSURE = (1.0, 10.0), (10.0, 100.0)
_WINDOW_EDGE = 0.01


def cell_centres(low: float, high: float, cells: int) -> np.ndarray:
    """Centres of equal cells, float64 ``[cells]``."""
    return low + (np.arange(cells) + 0.5) * ((high - low) / cells)


@dataclass(frozen=True)
class RandomField:
    """A batch of S random profiles that can be evaluated anywhere.

    Attributes:
        amplitude: ``A_j``, ``[S, K]``.
        wave_number: ``k_j`` in radians per unit length, ``[S, K]``.
        phase: ``phi_j``, ``[S, K]``.
        absolute: Whether the absolute value is taken, ``[S]`` bool.
        sign: +1 or -1, ``[S]``.
        windowed: Whether the window is put on, ``[S]`` bool.
        left: Where the window rises, ``[S]``.
        right: Where it falls, ``[S]``.
        scale: Factor and offset that follow, ``[S]`` each.
        offset: See ``scale``.
    """

    amplitude: np.ndarray
    wave_number: np.ndarray
    phase: np.ndarray
    absolute: np.ndarray
    sign: np.ndarray
    windowed: np.ndarray
    left: np.ndarray
    right: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.sign)

    def __getitem__(self, index: Sequence[int] | np.ndarray) -> RandomField:
        """The profiles numbered ``index`` (a list)."""
        chosen = {entry.name: getattr(self, entry.name)[index] for entry in fields(self)}
        return RandomField(**chosen)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Values at ``x``, of shape ``[n]``, or ``[S, n]`` for points of each profile's own.

        Computed in the precision of ``x``; the published values are those of float32.

        Returns:
            Array of shape ``[S, n]``.
        """
        x = np.atleast_1d(x)
        real = x.dtype
        x = np.broadcast_to(x, (len(self), x.shape[-1]))[:, None, :]

        def cast(values: np.ndarray, axes: int) -> np.ndarray:
            return values.astype(real).reshape(len(self), *[-1] * (axes > 1), 1)

        waves = np.sin(cast(self.wave_number, 2) * x + cast(self.phase, 2))
        u = np.sum(cast(self.amplitude, 2) * waves, axis=1)
        u = np.where(self.absolute[:, None], np.abs(u), u) * cast(self.sign, 1)
        edge = real.type(_WINDOW_EDGE)
        rise = np.tanh((x[:, 0] - cast(self.left, 1)) / edge)
        fall = np.tanh((x[:, 0] - cast(self.right, 1)) / edge)
        u = np.where(self.windowed[:, None], u * real.type(0.5) * (rise - fall), u)
        return u * cast(self.scale, 1) + cast(self.offset, 1)

    def rescaled(
        self, low: float, high: float, factor: np.ndarray, shift: np.ndarray
    ) -> RandomField:
        """``factor * q + shift``, q the profile mapped to [0, 1] on the published cells."""
        values = self(cell_centres(low, high, CELLS).astype(np.float32))
        least, most = values.min(axis=1), values.max(axis=1)
        scale = factor / np.maximum(most - least, np.finfo(np.float32).tiny)
        return replace(self, scale=scale, offset=shift - least * scale)


def _assemble(
    waves: np.ndarray, length: float, amplitude: np.ndarray, phase: np.ndarray, **rest: np.ndarray
) -> RandomField:
    """From the two drawn waves ``[S, 2]`` (0-based) and the other draws."""
    modes = amplitude.shape[1]
    times = (waves[:, :, None] == np.arange(modes)).sum(axis=1)
    number = (2.0 * np.pi / length) * np.arange(1, modes + 1) * times
    ones = np.ones(len(waves), dtype=amplitude.dtype)
    return RandomField(
        amplitude=amplitude,
        wave_number=number.astype(amplitude.dtype),
        phase=phase,
        scale=ones,
        offset=0 * ones,
        **rest,
    )


def _length(low: float, high: float) -> float:
    return (high - low) * (CELLS - 1) / CELLS


def _published_field(
    seed: int, number: int, modes: int, window: float, length: float
) -> tuple[RandomField, tuple[int, int]]:
    """All ``number`` profiles of a key, as JAX drew them, and the key for what follows."""
    key = prng_key(seed)
    waves = randint(key, (number, 2), 0, modes)
    amplitude = uniform(key, (number, modes))
    key, _ = split(key)
    phase = np.float32(2.0 * np.pi) * uniform(key, (number, modes))
    absolute = choice(key, (number,), (0.9, 0.1)) == 1
    sign = np.array([1.0, -1.0], dtype=np.float32)[randint(key, (number,), 0, 2)]
    key, _ = split(key)
    windowed = choice(key, (number,), (1.0 - window, window)) == 1
    field = _assemble(
        waves,
        length,
        amplitude,
        phase,
        absolute=absolute,
        sign=sign,
        windowed=windowed,
        left=uniform(key, (number,), 0.1, 0.45),
        right=uniform(key, (number,), 0.55, 0.9),
    )
    return field, key


def _fresh_field(
    generator: np.random.Generator, modes: int, window: float, length: float
) -> RandomField:
    """One new profile of the published distribution."""
    return _assemble(
        generator.integers(modes, size=(1, 2)),
        length,
        generator.uniform(size=(1, modes)),
        generator.uniform(0.0, 2.0 * np.pi, size=(1, modes)),
        absolute=generator.uniform(size=1) < 0.1,
        sign=generator.choice([1.0, -1.0], size=1),
        windowed=generator.uniform(size=1) < window,
        left=generator.uniform(0.1, 0.45, size=1),
        right=generator.uniform(0.55, 0.9, size=1),
    )


def _join(parts: list[RandomField]) -> RandomField:
    return RandomField(
        **{
            entry.name: np.concatenate([getattr(part, entry.name) for part in parts])
            for entry in fields(RandomField)
        }
    )


def published_index(task: str, sample: int) -> int:
    """The number of a published sample, negative ones counted from the end.

    Raises:
        DataError: If there is no such sample.
    """
    number = PUBLISHED[task]
    if not -number <= sample < number:
        raise DataError(
            f"sample {sample} of {task} does not exist; PDEBench has 0 to {number - 1} "
            f"(or -{number} to -1)"
        )
    return sample % number


def _generator(seed: int, sample: int) -> np.random.Generator:
    # A sample does not depend on which others are drawn with it.
    return np.random.default_rng([seed, sample])


def advection_field(samples: Sequence[int], seed: int | None = None) -> RandomField:
    """Initial profiles of advection on [0, 1].

    Args:
        samples: Published numbers (negative: from the end), or numbers within ``seed``.
        seed: Draw new profiles of the same distribution; None: the published ones. They agree with
            the ten values that the data set's public viewer prints to one unit in the last place.

    Raises:
        DataError: If a published sample does not exist.
    """
    length = _length(0.0, 1.0)
    if seed is not None:
        return _join([_fresh_field(_generator(seed, s), 4, 0.1, length) for s in samples])
    index = [published_index("advection", sample) for sample in samples]
    field, _ = _published_field(_ADVECTION_KEY, PUBLISHED["advection"], 4, 0.1, length)
    return field[index]


def flow_fields(samples: Sequence[int], seed: int | None = None) -> dict[str, RandomField]:
    """Initial density, velocity and pressure of the compressible flow on [-1, 1].

    Density and pressure are profiles mapped to [0, 1], times m plus b, both log-uniform (on
    [1, 10] for the density, on [10, 100] for the pressure).

    Args:
        samples: As for :func:`advection_field`. The published file is ten runs of a thousand
            samples, keys 2020 to 2029 in this order by the publisher's script; unlike the
            advection's profiles, these could not be compared with values of the published file.
        seed: As for :func:`advection_field`.

    Returns:
        ``{"rho", "v", "p"}``.
    """
    if seed is not None:
        return _fresh_flow(samples, seed)
    wanted = np.array([published_index("cfd", sample) for sample in samples], dtype=np.int64)
    runs, position = np.divmod(wanted, _FLOW_FILE)
    parts: dict[str, list[RandomField]] = {"rho": [], "v": [], "p": []}
    for run in np.unique(runs):
        for name, value in _published_flow(_FLOW_KEYS + int(run)).items():
            parts[name].append(value[position[runs == run]])
    back = np.argsort(np.argsort(runs, kind="stable"), kind="stable")
    return {name: _join(part)[back] for name, part in parts.items()}


def _published_flow(key: int) -> dict[str, RandomField]:
    low, high = -1.0, 1.0
    length = _length(low, high)
    flow = {}
    for shift, name, bounds in ((0, "rho", _DENSITY), (1, "p", _PRESSURE), (2, "v", None)):
        field, chain = _published_field(key + shift, _FLOW_FILE, 3, 0.5, length)
        if bounds is not None:
            draws = []
            for _ in range(2):  # m, then b
                chain, _ = split(chain)
                draws.append(np.exp(uniform(chain, (_FLOW_FILE,), *np.log(bounds))))
            field = field.rescaled(low, high, *draws)
        flow[name] = field
    return flow


def _fresh_flow(samples: Sequence[int], seed: int) -> dict[str, RandomField]:
    low, high = -1.0, 1.0
    length = _length(low, high)
    parts: dict[str, list[RandomField]] = {"rho": [], "v": [], "p": []}
    for sample in samples:
        generator = _generator(seed, sample)
        for name, bounds in (("rho", _DENSITY), ("p", _PRESSURE), ("v", None)):
            field = _fresh_field(generator, 3, 0.5, length)
            if bounds is not None:
                least, most = np.log(bounds)
                draws = np.exp(generator.uniform(least, most, size=(2, 1)))
                field = field.rescaled(low, high, *draws)
            parts[name].append(field)
    return {name: _join(part) for name, part in parts.items()}


def noise(sample: int, cells: int = 128, seed: int | None = None) -> dict[str, np.ndarray]:
    """Initial white noise, N(0, 1) in each cell, of the diffusion-reaction task.

    Args:
        sample: Published number, the seed of NumPy's old generator, of which u is drawn first; or
            the number within ``seed``.
        cells: Cells along x and along y; the published samples have 128.
        seed: Draw new noise; None: the published one.

    Returns:
        ``{"u", "v"}`` of shape ``[cells, cells]``, axes (y, x).
    """
    shape = (2, cells, cells)
    if seed is None:
        # np.random.seed(s) of the publisher's script is this generator, without the global state.
        legacy = np.random.RandomState(published_index("diffusion-reaction", sample))
        values = legacy.standard_normal(shape)
    else:
        values = _generator(seed, sample).standard_normal(shape)
    return {"u": values[0], "v": values[1]}


def published_initial(task: str, sample: int, cells: int | None = None) -> dict[str, np.ndarray]:
    """Initial fields of a published sample at the cell centres.

    Args:
        task: ``"advection"``, ``"cfd"`` or ``"diffusion-reaction"``.
        sample: Its number; negative: from the end.
        cells: Cells along each axis; None: as published (1024; 128 by 128).

    Returns:
        Field name to ``[cells]``, or ``[cells, cells]`` with axes (y, x). The profiles are float32
        as the published ones.

    Raises:
        DataError: If the task or the sample does not exist.
    """
    if task == "diffusion-reaction":
        return noise(sample, cells or 128)
    cells = cells or CELLS
    if task == "advection":
        x = cell_centres(0.0, 1.0, cells).astype(np.float32)
        return {"u": advection_field([sample])(x)[0]}
    if task == "cfd":
        x = cell_centres(-1.0, 1.0, cells).astype(np.float32)
        return {name: field(x)[0] for name, field in flow_fields([sample]).items()}
    raise DataError(f"unknown task {task!r}; PDEBench tasks here: {', '.join(PUBLISHED)}")

r"""Fourier spectra of fields on uniform grids: PDEBench's bands, and one that obeys Parseval.

Wave numbers count waves across the domain: :math:`k = 3` repeats three times in x.
"""

from __future__ import annotations

import numpy as np

BANDS = {"low": (0, 4), "mid": (4, 12), "high": (12, None)}
"""PDEBench's bands, ``low <= k < high``; the last one reaches to the grid's shortest wave."""


def band_errors(difference: np.ndarray) -> dict[str, np.ndarray]:
    r"""PDEBench's fRMSE of one sample in three bands, at each time.

    With :math:`\hat d = \mathrm{DFT}(p - y)`, unnormalised, and PDEBench's default lengths
    :math:`L_x = L_y = 1`:

    .. math::
        \text{1D:}\quad F_k &= |\hat d_k| / n_x, \qquad k = 0 \dots \lfloor n_x/2 \rfloor \\
        \text{2D:}\quad F_k &= \frac{1}{n_x n_y} \Big[\sum_{\lfloor\sqrt{i^2+j^2}\rfloor = k}
            |\hat d_{ij}|^2\Big]^{1/2},
            \quad 0 \le i < n_x/2,\ 0 \le j < n_y/2,\ k < \min(n_x, n_y)/2

    A band's value is the mean (not the sum) of :math:`F_k` over its k, so the bands do not add up
    to the RMSE (see :func:`energy_spectrum` for that). In 2D only the quadrant of non-negative
    wave numbers is looked at, as there: a wave that runs along the other diagonal is not seen.

    Args:
        difference: ``(nx, nt)`` or ``(nx, ny, nt)``.

    Returns:
        ``(nt,)`` each for ``low``, ``mid`` and ``high``; NaN where the grid has no such waves.
    """
    space, nt = difference.shape[:-1], difference.shape[-1]
    size = float(np.prod(space))
    if len(space) == 1:
        amplitude = np.abs(np.fft.rfft(difference, axis=0)) / size
    else:
        half = [n // 2 for n in space]
        quadrant = np.abs(np.fft.fft2(difference, axes=(0, 1))[: half[0], : half[1]]) ** 2
        amplitude = np.sqrt(_shell_sums(quadrant, _shells(*map(np.arange, half)), min(half))) / size
    bands = {}
    for name, (low, high) in BANDS.items():
        inside = amplitude[low:high]
        bands[name] = inside.mean(axis=0) if len(inside) else np.full(nt, np.nan)
    return bands


def energy_spectrum(values: np.ndarray) -> np.ndarray:
    r"""Mean square of a field, shared out among wave numbers.

    .. math:: E_k = N^{-2} \sum_{\lfloor|\mathbf k|\rfloor = k} |\hat f_{\mathbf k}|^2,
        \qquad \sum_k E_k = \operatorname{mean}(f^2) \quad\text{(Parseval)}

    over all wave vectors of both signs.

    Args:
        values: ``(nx,)`` or ``(nx, ny)``.

    Returns:
        ``(n,)``, index k.
    """
    power = np.abs(np.fft.fftn(values)) ** 2 / float(values.size) ** 2
    shells = _shells(*(np.abs(np.fft.fftfreq(n, 1.0 / n)) for n in values.shape))
    return _shell_sums(power[..., None], shells, int(shells.max()) + 1)[:, 0]


def _shells(*wave_numbers: np.ndarray) -> np.ndarray:
    """Floor of the length of every wave vector of a grid, as integers."""
    squares = sum(k**2 for k in np.meshgrid(*(np.rint(w) for w in wave_numbers), indexing="ij"))
    return np.floor(np.sqrt(squares)).astype(int)


def _shell_sums(power: np.ndarray, shells: np.ndarray, count: int) -> np.ndarray:
    """Sums of ``power`` ``(*grid, nt)`` over equal ``shells`` ``(*grid)``: ``(count, nt)``."""
    sums = np.zeros((int(shells.max()) + 1 if shells.size else 0, power.shape[-1]))
    np.add.at(sums, shells.ravel(), power.reshape(-1, power.shape[-1]))
    return sums[:count]

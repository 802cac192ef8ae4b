"""Labels of stress that speak for another sign or unit than the one they are read with."""

from __future__ import annotations

import numpy as np

from dcase.data.dataset import AtomicDataset
from dcase.units import GPA

_FEWEST = 8  # frames of one composition
_SPREAD = 0.005  # standard deviation of ln(volume) from which a slope means something
_CLEAR = 0.7  # correlation of stress and ln(volume)
_STIFFEST = 1500.0  # GPa; diamond has 443


def stress_doubts(dataset: AtomicDataset) -> list[str]:
    """What is odd about the stress, a line each.

    Of frames of one composition and different volume, the mean stress grows with ln(volume), by the
    bulk modulus: a slope that is clearly negative is that of a pressure, and one beyond any solid's
    that of another unit.
    """
    there = np.flatnonzero(dataset.stressed)
    if not len(there) or dataset.stress is None or dataset.cells is None:
        return []
    doubts = []
    zero = there[(dataset.stress[there] == 0).all(axis=1)]
    if len(zero):
        doubts.append(f"{len(zero)} frames with a stress of exactly zero (the first is {zero[0]})")
    groups: dict[bytes, list[int]] = {}
    for frame in there:
        numbers = dataset.numbers[dataset.ptr[frame] : dataset.ptr[frame + 1]]
        groups.setdefault(np.sort(numbers).tobytes(), []).append(int(frame))
    slopes = []
    for frames in groups.values():
        volume = np.log(np.abs(np.linalg.det(dataset.cells[frames])))
        mean = dataset.stress[frames, :3].mean(axis=1) / GPA
        if len(frames) < _FEWEST or volume.std() < _SPREAD or mean.std() == 0:
            continue
        correlation = np.corrcoef(volume, mean)[0, 1]
        if abs(correlation) > _CLEAR:
            slopes.append(correlation * mean.std() / volume.std())
    if not slopes:
        return doubts
    modulus = float(np.median(slopes))
    if modulus < 0:
        doubts.append(
            f"the stress falls as the volume grows (a bulk modulus of {modulus:.4g} GPa): the file "
            "likely counts compression as positive; give --stress-unit with a minus in front"
        )
    if abs(modulus) > _STIFFEST:
        doubts.append(
            f"the stress speaks for a bulk modulus of {abs(modulus):.4g} GPa, more than any solid "
            "has: another unit? (--stress-unit GPa or kbar, --virial-key)"
        )
    return doubts

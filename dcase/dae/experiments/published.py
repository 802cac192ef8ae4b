"""Tables 1 and 2 of the paper (Neural DAEs: constrained neural networks, section 4).

Mean absolute errors over a test set of 1000 samples, mean of three runs: cm for the pendulum, pm
for water. The paper gives no spread. Keys: k, method, number of training samples.
"""

from __future__ import annotations

TITLES = {
    "none": "No constraints",
    "auxiliary": "Auxiliary loss",
    "penalty": "Penalty",
    "end": "End constraints",
    "smooth": "Smooth constraints",
}
"""The paper's names of the methods."""

METHODS = tuple(TITLES)
SIZES = (100, 1000, 10_000)

Figures = dict[int, dict[str, dict[int, float]]]


def _by_size(rows: dict[str, tuple[float, float, float]]) -> dict[str, dict[int, float]]:
    return {name: dict(zip(SIZES, row, strict=True)) for name, row in rows.items()}


TABLE1: Figures = {
    20: _by_size(
        {
            "none": (35.0, 6.40, 2.39),
            "auxiliary": (35.1, 8.52, 2.94),
            "penalty": (32.6, 5.72, 2.32),
            "end": (29.8, 6.89, 2.93),
            "smooth": (27.9, 7.35, 2.85),
        }
    ),
    50: _by_size(
        {
            "none": (67.6, 10.7, 3.98),
            "auxiliary": (78.0, 31.8, 27.4),
            "penalty": (66.3, 13.1, 5.43),
            "end": (68.8, 40.9, 48.8),
            "smooth": (73.2, 40.3, 52.7),
        }
    ),
}
"""Pendulum, cm."""

TABLE2: Figures = {
    50: _by_size(
        {
            "none": (6.80, 6.67, 3.79),
            "auxiliary": (6.82, 6.70, 3.28),
            "penalty": (4.59, 4.05, 1.52),
            "end": (3.63, 3.62, 3.13),
            "smooth": (3.55, 3.50, 3.18),
        }
    ),
}
"""Water, pm."""

OF_SYSTEM = {"pendulum": TABLE1, "water": TABLE2}


def figure_of(system: str, k: int, method: str, n_train: int) -> float | None:
    """The paper's error, or None where it has none."""
    return OF_SYSTEM[system].get(k, {}).get(method, {}).get(n_train)

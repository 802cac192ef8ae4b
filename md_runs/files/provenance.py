"""What computed a result: the model, its precision and place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcase.data.frames import UNKNOWN


def describe_calculator(calculator: Any) -> dict[str, Any]:
    """Name, level of theory, precision and device of an ASE calculator.

    A ``DCCalculator`` says what it is through ``potential``, ``model_path``, ``dtype`` and
    ``device``. Any other calculator is taken to be float64 on the CPU under its own name.

    Returns:
        ``model``, ``level_of_theory`` (None if unknown), ``dtype``, ``device`` and ``form`` (of a
        ``DCCalculator``: compiled, or PyTorch and why; else None).
    """
    potential = getattr(calculator, "potential", None)
    facts = getattr(potential, "metadata", None)
    dataset = facts.get("dataset") if isinstance(facts, dict) else None
    level = dataset.get("level_of_theory") if isinstance(dataset, dict) else None
    level = level or getattr(potential, "level_of_theory", None)
    path = getattr(calculator, "model_path", None)
    names = (
        getattr(potential, "name", None),
        _file_names(path) if isinstance(path, str) else None,
        getattr(potential, "architecture", None),
        getattr(calculator, "name", None),
    )
    name = next((n for n in names if isinstance(n, str) and n), type(calculator).__name__)
    return {
        "model": name,
        "level_of_theory": None if level == UNKNOWN else level,
        "dtype": str(getattr(calculator, "dtype", "float64")).removeprefix("torch."),
        "device": str(getattr(calculator, "device", "cpu")),
        "form": getattr(calculator, "form", None),
    }


def _file_names(path: str) -> str:
    """Names of the files of a potential, or of the members of an ensemble."""
    return ", ".join(Path(part).name for part in path.split(", "))

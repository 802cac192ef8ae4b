"""Conformance checks: is this potential conservative, invariant, smooth and exactly differentiable?

The same suite runs on a user's model (``dcase check``) and in dcase's own tests, for every
architecture. Each check measures one number and compares it with a limit that is stated beside it.
Errors of forces are divided by the root mean square force F of the structure, errors of energies by
F x 1 A plus the network's own energy per atom, so that the limits mean the same for a soft and a
stiff model.

Finite differences are taken with several steps and the best is reported. A wrong force misses by
the same amount with every step, so nothing is hidden; but no single step suits both a smooth model,
where the step may be large, and IReLU, whose second derivative jumps at every kink inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase import Atoms

from dcase.md_runs.checks import measures, practice
from dcase.md_runs.checks.structures import default_structure
from dcase.md_runs.checks.subject import Skip, Subject
from dcase.potentials.potential import Potential, load_potential


@dataclass(frozen=True)
class CheckResult:
    """One measured number and its limit.

    Attributes:
        name: What was checked.
        passed: ``value <= limit`` (True as well where the check was skipped: nothing failed).
        value: The number; NaN where skipped, or where the check itself failed to run.
        limit: Its limit.
        unit: Of both; ``"F"`` is the root mean square force, see the module text.
        detail: One line on how it was measured, or why it failed or was skipped.
        skipped: The check does not apply to this structure, dtype or device.
        by_design: Not passed, and the architecture does not promise it (ForceNet: invariance to
            rotation). The number stands; it is no fault of this potential, but mind it.
    """

    name: str
    passed: bool
    value: float
    limit: float
    unit: str = ""
    detail: str = ""
    skipped: bool = False
    by_design: bool = False

    @property
    def failed(self) -> bool:
        """Whether a promise is broken."""
        return not (self.passed or self.skipped or self.by_design)


def run_checks(
    potential_or_path: Potential | str | Path,
    atoms: Atoms | None = None,
    *,
    dtype: str = "float64",
    device: str | None = None,
    progress: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Run every check on a potential.

    Args:
        potential_or_path: A potential (copied, never changed) or a checkpoint.
        atoms: Structure to check on, periodic or not; default: the molecule it was trained on, or
            another one of its elements. It is rattled by 0.05 A, so that there are forces.
        dtype: ``"float64"``, or ``"float32"`` with limits as wide as its rounding; checks that
            rounding would drown are skipped there.
        device: Where to evaluate; default as the calculator's.
        progress: Called with each result as soon as it is there.

    Returns:
        One result a check, in a fixed order. A check that raises is a failed check.

    Raises:
        DcaseError: If the potential cannot be loaded, or not evaluated on this structure at all.
    """
    potential = (
        potential_or_path
        if isinstance(potential_or_path, Potential)
        else load_potential(potential_or_path)
    )
    if atoms is None:
        atoms = default_structure(potential)
    subject = Subject(potential, atoms, dtype, device)
    results = []
    for check in _CHECKS:
        result = _run(check, subject)
        results.append(result)
        if progress is not None:
            progress(result)
    return results


def format_table(results: Iterable[CheckResult]) -> str:
    """The results as plain text, one check a line."""
    lines = [f"{'check':32}  {'':9}  {'value':>9}  {'limit':>9}  unit"]
    for r in results:
        numbers = f"{r.value:9.1e}  {r.limit:9.1e}" if not r.skipped else f"{'-':>9}  {'-':>9}"
        line = f"{r.name:32}  {_verdict(r):9}  {numbers}  {r.unit}"
        lines.append(line.rstrip() if r.passed and not r.skipped else f"{line:74}  {r.detail}")
    return "\n".join(lines)


def print_results(results: Iterable[CheckResult], console: Any = None) -> None:
    """Print the results as a table.

    Args:
        results: From :func:`run_checks`.
        console: Of rich; a new one on standard output by default.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "", box=None, pad_edge=False)
    for heading in ("value", "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit")
    table.add_column("how", style="dim")
    colours = {"ok": "green", "skipped": "yellow", "by design": "red", "FAILED": "bold red"}
    for r in results:
        verdict = _verdict(r)
        numbers = ("", "") if r.skipped else (f"{r.value:.1e}", f"{r.limit:.1e}")
        table.add_row(
            r.name,
            f"[{colours[verdict]}]{verdict}[/]",
            *numbers,
            r.unit,
            r.detail.replace("[", r"\["),
        )
    (console or Console()).print(table)


def _verdict(result: CheckResult) -> str:
    if result.skipped:
        return "skipped"
    if result.passed:
        return "ok"
    return "by design" if result.by_design else "FAILED"


@dataclass(frozen=True)
class _Check:
    name: str
    function: Callable[..., tuple[float, str]]
    limit: float
    limit32: float | None  # None: not in float32
    unit: str = ""
    arguments: Sequence[Any] = field(default_factory=tuple)
    promise: str = ""  # attribute of a network; one that sets it to False does not promise this


_ROTATION = "rotation_invariant"

_CHECKS = (
    _Check("forces, every component", measures.force_components, 1e-6, 1e-2, "F"),
    _Check("forces, along directions", measures.force_directions, 1e-6, 1e-2, "|F|"),
    _Check("stress", measures.stress, 1e-6, 1e-2, "rms stress"),
    _Check("gradcheck", measures.autograd, 0.0, None, "failures", (False,)),
    _Check("gradgradcheck", measures.autograd, 0.0, None, "failures", (True,)),
    _Check("gradient of a force loss", measures.training_gradient, 1e-5, None, "its size"),
    _Check("translation", measures.translation, 1e-9, 1e-4, "F"),
    _Check("rotation", measures.orthogonal_map, 1e-9, 1e-4, "F", (1,), _ROTATION),
    _Check("mirror", measures.orthogonal_map, 1e-9, 1e-4, "F", (-1,), _ROTATION),
    _Check("permutation", measures.permutation, 1e-9, 1e-4, "F"),
    _Check("batch equals single", measures.batch, 1e-9, 1e-4, "F"),
    _Check("separated fragments add up", measures.fragments, 1e-9, 1e-4, "F"),
    _Check("supercell is n cells", measures.supercell, 1e-9, 1e-4, "F"),
    _Check("smooth at the cutoff", measures.cutoff_jump, 1e-4, 1e-3, "F inside"),
    _Check("sum of forces", measures.net_force, 1e-10, 1e-4, "F"),
    _Check("torque", measures.net_torque, 1e-10, 1e-4, "F x radius", (), _ROTATION),
    _Check("float32 energy", practice.single_precision, 1e-5, 1e-5, "eV/atom", ("energy",)),
    _Check("float32 forces", practice.single_precision, 1e-3, 1e-3, "F", ("forces",)),
    _Check("device equals CPU", practice.device, 1e-9, 1e-3, "F"),
    _Check("save and load", practice.save_and_load, 0.0, 0.0, "difference"),
    _Check("calculator copies", practice.calculator_copies, 1e-12, 1e-4, "F"),
    _Check("kept neighbour list", practice.kept_list, 1e-9, 1e-4, "F"),
    _Check("time reversal", practice.time_reversal, 1e-8, None, "A"),
    _Check("dt^2 law", practice.timestep_law, 0.4, None, "|ratio - 4|"),
)


def _run(check: _Check, subject: Subject) -> CheckResult:
    limit = check.limit if subject.dtype == "float64" else check.limit32
    try:
        if limit is None:
            raise Skip("needs float64")
        value, detail = check.function(subject, *check.arguments)
    except Skip as reason:
        nan = float("nan")
        return CheckResult(check.name, True, nan, check.limit, check.unit, str(reason), True)
    except Exception as error:  # a model that cannot do what a check asks has failed it
        lines = str(error).splitlines() or [""]
        detail = f"{type(error).__name__}: {lines[0]}"
        return CheckResult(check.name, False, float("nan"), limit or 0.0, check.unit, detail)
    passed = bool(value <= limit)
    promised = getattr(subject.potential.network, check.promise, True) if check.promise else True
    by_design = not passed and not promised and math.isfinite(value)  # no design gives NaN
    if by_design:
        why = f"{subject.potential.architecture} does not promise it"
        detail = f"{why}; {detail}" if detail else why
    return CheckResult(
        check.name, passed, float(value), limit, check.unit, detail, by_design=by_design
    )

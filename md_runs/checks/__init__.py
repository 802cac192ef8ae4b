"""Conformance checks: is a potential conservative, invariant, smooth, exactly differentiable?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcase.md_runs.checks.conformance import (
        CheckResult,
        format_table,
        print_results,
        run_checks,
    )

__all__ = ["CheckResult", "format_table", "print_results", "run_checks"]


def __getattr__(name: str) -> Any:
    # Late: what is in this folder imports its neighbours without importing all of them.
    if name in __all__:
        from dcase.md_runs.checks import conformance

        return getattr(conformance, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

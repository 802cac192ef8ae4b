"""Reports of runs: numbers, pictures, one page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcase.md_runs.report.report import ensemble_name, print_summary, summary_rows, write_report

__all__ = ["ensemble_name", "print_summary", "summary_rows", "write_report"]


def __getattr__(name: str) -> Any:
    # Late: what is in this folder imports its neighbours without importing all of them.
    if name in __all__:
        from dcase.md_runs.report import report

        return getattr(report, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

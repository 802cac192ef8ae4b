"""Reports of runs: numbers, pictures, one page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcase.moved import lazy_names

if TYPE_CHECKING:
    from dcase.md_runs.report.report import write_report
    from dcase.md_runs.report.summary import ensemble_name, print_summary, summary_rows

__all__ = ["ensemble_name", "print_summary", "summary_rows", "write_report"]

# Late: what is in this folder imports its neighbours without importing all of them.
__getattr__ = lazy_names(
    __name__,
    {
        "ensemble_name": "dcase.md_runs.report.summary",
        "print_summary": "dcase.md_runs.report.summary",
        "summary_rows": "dcase.md_runs.report.summary",
        "write_report": "dcase.md_runs.report.report",
    },
)

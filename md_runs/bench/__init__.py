"""How fast simulations are on this machine, and where the time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcase.md_runs.bench.measure import BenchResult, Timing, bench_md

__all__ = ["BenchResult", "Timing", "bench_md"]


def __getattr__(name: str) -> Any:
    # Late: what is in this folder imports its neighbours without importing all of them.
    if name in __all__:
        from dcase.md_runs.bench import measure

        return getattr(measure, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a user should know beside the results: warnings, and notes that are no trouble."""

from __future__ import annotations

from rich.console import Console


class Notices:
    """Writes to stderr; called with a line, it warns.

    Args:
        console: Of stderr.
        quiet: Leave out notes.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet

    def __call__(self, line: str) -> None:
        """Something that may spoil the result."""
        self._console.print(f"WARNING: {line}", style="bold yellow", markup=False)

    def note(self, line: str) -> None:
        """Something that was done, and is as it should be."""
        if not self._quiet:
            self._console.print(f"note    {line}", markup=False)

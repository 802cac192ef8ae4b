"""Errors that a user can act on.

Every message is one line that says what is wrong and what to do. The command line prints that line
and exits non-zero; the traceback is shown only with ``--debug``.
"""

from __future__ import annotations


class DcaseError(Exception):
    """Base of all errors that dcase raises on purpose."""


class DataError(DcaseError, ValueError):
    """A dataset is missing, damaged, or lacks what was asked of it."""


class CheckpointError(DcaseError):
    """A file is not a dcase checkpoint, is damaged, or does not fit."""


class OptionError(DcaseError, ValueError):
    """An option or hyper-parameter has an impossible value."""


class MissingExtraError(DcaseError, ImportError):
    """An optional package is needed for this and is not installed."""


class TrainingError(DcaseError):
    """Training cannot go on (NaN loss, mismatching resume file)."""


class DivergedError(TrainingError):
    """The loss or a gradient became NaN or infinite."""


class SimulationError(DcaseError):
    """A simulation cannot start, or blew up."""


class RunError(OptionError, SimulationError):
    """A folder cannot be taken for a run: it holds another one, or is in use, or went away."""


class PaperVariantWarning(UserWarning):
    """A published implementation is used to the letter, with what is wrong with it."""


class NetworkWarning(UserWarning):
    """A network from outside of dcase lacks what a good potential has; the line says what."""


class ElectronsWarning(UserWarning):
    """A potential is used on another total charge or spin than it was trained on."""


class ApartWarning(UserWarning):
    """Most atoms are out of reach of all others; the lengths may be in another unit."""


class KernelWarning(UserWarning):
    """There is no compiled form to be had here, or no place to keep it; the line says why."""

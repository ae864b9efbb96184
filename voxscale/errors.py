"""The errors a user can meet, one base class for all of them.

Every message follows one grammar: "*dotted.name* must be *condition*, not
*value*; choose from ...". A message never holds a patient's name, a source
path or a header field: scans are named by their anonymous id.
"""

import errno
import importlib.util


class VoxScaleError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(VoxScaleError, ValueError):
    """A configuration value is missing, unknown or out of range."""


class DataError(VoxScaleError, ValueError):
    """A scan, label, store or shard cannot be used as it is.

    Attributes:
        reason: Short machine-readable reason, as it stands in the ledger.
    """

    def __init__(self, message: str, reason: str = "invalid") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, str]]:
        """Keep the reason when the error crosses a process border."""
        return type(self), (str(self), self.reason)


class StorageError(VoxScaleError):
    """A service that holds data does not answer, or refuses; nothing is said about the data."""


class GeometryError(DataError):
    """An affine matrix or grid is not one this project can represent."""


class ContractError(VoxScaleError, ValueError):
    """Data and model were prepared under different input contracts."""


class CheckpointError(VoxScaleError, RuntimeError):
    """A checkpoint is damaged, missing or of another architecture."""


class TrainingError(VoxScaleError, RuntimeError):
    """Training cannot go on: a non-finite value, a lost rank, a full disk."""


class PreemptedError(VoxScaleError, RuntimeError):
    """A signal asked the run to end; it saved a checkpoint and can be started again.

    Attributes:
        signal: Name of the signal.
    """

    def __init__(self, message: str, signal: str) -> None:
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[type["PreemptedError"], tuple[str, str]]:
        """Keep the signal when the error crosses a process border."""
        return type(self), (str(self), self.signal)


_REMEDIES = {
    errno.ENOSPC: "free some disk",
    errno.EDQUOT: "free some of your quota of the disk",
    errno.EFBIG: "raise the limit on the size of a file",
    errno.EACCES: "give this user the right to read and write there",
    errno.EPERM: "give this user the right to read and write there",
    errno.EROFS: "have the disk mounted for writing, or name a folder elsewhere",
    errno.ENOENT: "name a file or folder that is there",
    errno.EMFILE: "raise the limit on open files",
}


def remedy(error: OSError) -> str:
    """What helps against an error of the operating system."""
    return _REMEDIES.get(error.errno or 0, "see that the disk is mounted and works")


def system_error_text(error: OSError) -> str:
    """One line for an error of the operating system, such as a full disk; no path, which may name a patient."""
    what = error.strerror or type(error).__name__
    return f"files must be readable and writable, but: {what}; {remedy(error)}"


def missing_package_text(error: Exception) -> str:
    """One line for a package that is not installed; empty for any other error, also if a package lacks a module."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not name or importlib.util.find_spec(name) is not None:
        return ""
    return f"package {name} must be installed, but cannot be found; run `make install`, or install it with pip"

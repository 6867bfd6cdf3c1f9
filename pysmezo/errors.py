"""The error types, as raised by the core. Message grammar: `[where] what was found, what was expected, likely cause`."""

import errno
import os
import shutil
from contextlib import suppress

from ._core import ArgumentError, BudgetError, FormatError, IoError, PysmezoError

__all__ = ["ArgumentError", "BudgetError", "FormatError", "IoError", "PysmezoError", "bare", "io_error"]

NO_PERMISSION = "expected permission; check the owner of the file and of its folder, or a read-only mount"
EXPECTED = {
    errno.ENOENT: "expected an existing path; check the spelling, or whether it was moved or deleted",
    errno.EACCES: NO_PERMISSION,
    errno.EPERM: NO_PERMISSION,
    errno.EROFS: NO_PERMISSION,
    errno.EEXIST: "expected no file of that name",
    errno.ENOTDIR: "expected a folder",
    errno.EFBIG: "expected it to grow; a limit on the size of files, see ulimit -f",
}


def bare(e: Exception) -> str:
    """An error's message in one line and without its [where], to stand in another one."""
    text = " ".join(str(e).split())
    return text.partition("] ")[2] if isinstance(e, PysmezoError) else text


def io_error(where: str, e: OSError, path=None, n_bytes: int | None = None) -> IoError:
    """An error of the system in our grammar. path: of the file, where the error names none. n_bytes: that were to be
    written.
    """
    path = e.filename if path is None else path
    found = (e.strerror or str(e)) if path is None else f"'{path}': {e.strerror or e}"
    found = found if n_bytes is None else f"cannot write {found}"
    if e.errno not in (errno.ENOSPC, errno.EDQUOT):
        return IoError(f"[{where}] " + "; ".join(filter(None, (found, EXPECTED.get(e.errno)))))
    room = [] if n_bytes is None else [f"needed {n_bytes} more bytes"]
    if path is not None:
        with suppress(OSError):
            room.append(f"the disk has {shutil.disk_usage(os.path.dirname(str(path)) or '.').free} free")
    return IoError(f"[{where}] " + "; ".join(filter(None, (found, ", ".join(room), "make room and try again"))))

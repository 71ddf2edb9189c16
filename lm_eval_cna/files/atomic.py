"""Files that are whole or not there, and files from elsewhere that may be anything. Standard library only."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it; its folder is made.

    Raises:
        OSError: it cannot be written; nothing is left of it then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it is gone where all went well, and its folder may be missing where not
            temporary.unlink()


def read_whole(path: Path, *, limit: int) -> bytes:
    """Read a regular file; a pipe or a device, which may never end, is not opened for long.

    Args:
        path: the file, or a link to one.
        limit: the most bytes that are read.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than the limit.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if about.st_size > limit:
            most = f"{limit >> 20} MiB" if limit >= 2**20 else f"{limit:,} bytes"
            raise OSError(errno.EFBIG, f"it is too large; allowed: up to {most}")
        return file.read()


def is_file(path: Path) -> bool:
    """Whether a file is there; what cannot be the name of one is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def usable_path(path: Path) -> Path:
    """A path, as a configuration's validator takes it.

    Raises:
        ValueError: no file can have that name.
    """
    if b"\0" in os.fsencode(path):  # raises where half a surrogate pair is in it
        raise ValueError("no name of a file holds a NUL")
    return path

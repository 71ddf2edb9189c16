"""Write a file whole or not at all, and read files of unknown origin within limits."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it, so that nobody sees half of it. Its folder is created.

    Raises:
        OSError: the file cannot be written; then an older file of that name stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # after success it has another name, and after a failure its folder may be missing
            temporary.unlink()


def read_whole(path: Path, *, limit: int) -> bytes:
    """Read a regular file of limited size in bytes. Pipes and devices, which may never end, are refused.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger than the limit.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if about.st_size > limit:
            most = f"{limit >> 20} MiB" if limit >= 2**20 else f"{limit:,} bytes"
            raise OSError(errno.EFBIG, f"it is too large; allowed: up to {most}")
        return file.read()


def is_file(path: Path) -> bool:
    """Whether a file exists; False also for text that cannot be a file's name."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def usable_path(path: Path) -> Path:
    """Check that a path can be the name of a file; made for pydantic's `AfterValidator`.

    Raises:
        ValueError: the path holds a NUL or half of a surrogate pair.
    """
    if b"\0" in os.fsencode(path):  # fsencode itself refuses half of a surrogate pair
        raise ValueError("the name of a file cannot hold a NUL")
    return path

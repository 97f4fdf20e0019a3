"""A regular file that somebody else may have made, opened without waiting and read within bounds.

Its name may lead to a fifo, whose opening waits for a writer, or to a device, which has no end or does something as
soon as it is opened; and it may mean another file by the next look. So the name is resolved without opening anything
(O_PATH), and what was found is what is opened.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path | str, *, follows_links: bool) -> BinaryIO:
    """The file, open for reading. Raises OSError, also for what is no regular file, a link not followed included."""
    try:
        found = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follows_links else os.O_NOFOLLOW))
    except ValueError as error:  # A name with a NUL in it.
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        # Some files of the kernel's own count as regular, and wait until there is something to read.
        opened = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(found)
    return os.fdopen(opened, "rb")


def read_regular(path: Path | str, *, max_bytes: int, follows_links: bool) -> bytes:
    """What is in it. Raises OSError as `open_regular` does, and for a file of more than `max_bytes`."""
    with open_regular(path, follows_links=follows_links) as stream:
        data = stream.read(max_bytes + 1) or b""
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
    return data

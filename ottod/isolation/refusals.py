"""What the system said, as one line that tells a model what to do next."""

from __future__ import annotations

import errno

from ottod.errors import ToolError


def refusal(path: str, error: OSError, *, root: str) -> ToolError:
    """The ToolError for a failed file operation on `path`, as the model wrote it."""
    match error.errno:
        case errno.EXDEV:
            return ToolError(
                f"{path} is outside the working directory {root}; only paths inside it can be used", code="outside"
            )
        case errno.ENOENT:
            return ToolError(f"no such file or directory: {path}; fs_list shows what is there", code="not_found")
        case errno.ENOTDIR:
            return ToolError(f"not a directory: {path}", code="not_a_directory")
        case errno.EISDIR | errno.ENOTEMPTY | errno.EEXIST:
            return ToolError(f"{path} is a directory, not a file", code="not_a_file")
        case errno.ELOOP:
            return ToolError(f"{path} runs through symlinks that cannot be followed", code="bad_path")
        case errno.EACCES | errno.EPERM:
            return ToolError(f"permission denied: {path}", code="permission")
        case errno.ENAMETOOLONG:
            return ToolError("the path is too long for the file system", code="bad_path")
        case errno.ENOSPC | errno.EDQUOT:
            return ToolError(f"the disk is full; {path} was not written", code="disk_full")
        case errno.EBADF:
            return ToolError("the working directory is closed", code="workdir_gone")
        case _:
            return ToolError(f"{path}: {error.strerror or error}", code="io")


def too_large(path: str, size_bytes: int, max_bytes: int) -> ToolError:
    """A file above the bound that its reader set. Sizes in bytes."""
    return ToolError(
        f"{path} is too large ({size_bytes} bytes or more, the limit is {max_bytes}); "
        "use grep, or head, tail or sed in shell",
        code="too_large",
    )

"""A folder for one process at a time."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

from .errors import UsageError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(folder: str, name: str) -> Iterator[None]:
    """
    Keeps other processes out of the block; however this one ends, the lock ends with it. Where the
    file system has no locks, there is none.

    Args:
        folder: it is there.
        name: what the user names it by, for the message.

    Raises:
        UsageError: another process is in it, or it can't be written to.
    """
    try:
        file = open(os.path.join(folder, LOCK_FILE), "a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{name} {folder} can't be written to: {error.strerror}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would pass to what is forked
        except (BlockingIOError, PermissionError):  # POSIX allows both
            file.seek(0)
            holder = file.read() or "another process"
            raise UsageError(
                f"{name} {folder} is in use by {holder}: let it end, or choose another {name}"
            ) from None
        except OSError:
            pass
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield

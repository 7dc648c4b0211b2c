"""Files and folders that are written whole, and folders for one process at a time."""

import contextlib
import errno
import fcntl
import glob
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import UsageError

_LOCK_FILE = ".lock"
_UNFINISHED = ".unfinished"


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """
    A file to write that has its old content, or none, until the block has ended without an error,
    and all of its new content afterwards, whenever the process is killed. Text is UTF-8.
    """
    unfinished = f"{os.fspath(path)}.{os.getpid()}{_UNFINISHED}"
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the name changes, lest a power failure leave it empty
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        raise


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    A folder to fill, which gets its name when the block has ended without an error; else nothing
    is left.

    Raises:
        UsageError: it can't be written, or something of that name is there.
    """
    whole = Path(path).absolute()
    try:
        if os.path.lexists(whole):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        whole.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{whole.name}-", dir=whole.parent) as hidden:
            draft = Path(hidden, whole.name)
            draft.mkdir()
            yield draft
            draft.rename(whole)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}") from error


def make_folder(path: str, name: str) -> None:
    """
    Makes a folder unless it is there.

    Args:
        name: what the user names it by, for the message.

    Raises:
        UsageError: it can't be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{name} {path}: {error.strerror}") from error


def remove_unfinished(folder: str) -> None:
    """Removes what processes that were killed in a whole_file have left."""
    for path in glob.glob(os.path.join(glob.escape(folder), f"*{_UNFINISHED}")):
        os.remove(path)


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
        file = open(os.path.join(folder, _LOCK_FILE), "a+", encoding="utf-8")
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

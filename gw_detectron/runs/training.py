"""One training run in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from . import __name__ as package

__all__ = ["start", "stop"]

_SECONDS_TO_END = 15


def start(arguments: Sequence[str], console: str) -> subprocess.Popen:
    """
    Starts training as tools/train_net.py does with these arguments, from an installed package too.

    The process ends by itself when this one is no longer there, however that ended. It belongs to
    a process group of its own, so that a Ctrl-C in the terminal reaches only this process.

    Args:
        console: a file that what it prints is appended to.
    """
    with open(console, "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", f"{package}.child", *arguments],
            stdin=subprocess.PIPE,  # see child.py
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: subprocess.Popen) -> None:
    """
    Ends it and all that it has started, if it hasn't ended; returns when it has. It has the time
    to save where it is.
    """
    for end in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        os.killpg(process.pid, end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)
    if process.stdin:
        process.stdin.close()

"""A folder that another process keeps to itself."""

import contextlib
import subprocess
import sys

HOLD = """
import os, sys
from gw_detectron.files import locked
with locked(sys.argv[1], "it"):
    if os.fork() == 0:  # as a loader's worker is
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def lock_held(folder):
    """Gives the process, which has a child; at the end both are gone."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process

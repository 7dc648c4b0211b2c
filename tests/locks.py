"""A folder that another process keeps to itself."""

import contextlib
import multiprocessing
import os

from gw_detectron.files import locked

CONTEXT = multiprocessing.get_context("fork")


def _hold(folder, held, end, other_end):
    os.close(other_end)
    with locked(str(folder), "it"):
        os.fork()  # as a loader's worker is
        held.set()
        os.read(end, 1)  # nothing, once the other end is closed
    os._exit(0)


@contextlib.contextmanager
def lock_held(folder):
    """Gives the process, which has a child; at the end both are gone."""
    end, other_end = os.pipe()
    held = CONTEXT.Event()
    process = CONTEXT.Process(target=_hold, args=(folder, held, end, other_end))
    process.start()
    assert held.wait(60)
    try:
        yield process
    finally:
        os.close(other_end)
        os.close(end)
        process.join()

"""Ends of a run that are no fault of the program, each told in one line."""

import contextlib
import errno
import logging
import re
import sys
from collections.abc import Iterator

from detectron2.engine import DefaultTrainer

from ..errors import UsageError

logger = logging.getLogger("detectron2.gw")

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def explained(trainer: DefaultTrainer) -> Iterator[None]:
    """
    Around training. The traceback of what is explained is in log.txt, not on the console.

    Raises:
        UsageError: training diverged, or the disk is full; it says what is left.
    """

    def is_unexplained(record: logging.LogRecord) -> bool:
        return not (record.exc_info and _explain(record.exc_info[1], trainer))

    handlers = logging.getLogger("detectron2").handlers
    consoles = [h for h in handlers if getattr(h, "stream", None) is sys.stdout]
    for console in consoles:
        console.addFilter(is_unexplained)
    try:
        yield
    except KeyboardInterrupt:
        logger.info(
            f"Stopped at iteration {trainer.iter}; {_what_is_left(trainer)}; "
            "add --resume to resume the run"
        )
        raise
    except Exception as error:
        line = _explain(error, trainer)
        if line is None:
            raise
        raise UsageError(line) from error
    finally:
        for console in consoles:
            console.removeFilter(is_unexplained)


def _explain(error: BaseException | None, trainer: DefaultTrainer) -> str | None:
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, FloatingPointError):
        return (
            f"training diverged at iteration {trainer.iter}: {_not_finite(str(error))}; "
            f"{_what_is_left(trainer)}; a lower SOLVER.BASE_LR or more SOLVER.WARMUP_ITERS may help"
        )
    while error is not None:  # torch.save raises another one after the OSError
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return (
                f"the disk with OUTPUT_DIR {trainer.cfg.OUTPUT_DIR} is full at iteration "
                f"{trainer.iter}; {_what_is_left(trainer)}; make room and add --resume"
            )
        error = error.__cause__ or error.__context__
    return None


def _not_finite(message: str) -> str:
    """The losses that Detectron2's message gives as inf or nan, or else all that it says."""
    losses = re.findall(r"'(\w+)': (?:np\.float64\()?(-?inf|nan)\b", message)
    return ", ".join(map(" ".join, losses)) or " ".join(message.split())


def _what_is_left(trainer: DefaultTrainer) -> str:
    if not trainer.checkpointer.has_checkpoint():
        return "there is no checkpoint yet"
    return f"the last checkpoint is safe: {trainer.checkpointer.get_checkpoint_file()}"

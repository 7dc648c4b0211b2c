"""The error of a user's mistake."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UsageError(ValueError):
    """
    A mistake in what the user wrote: a config value, an argument, a file.

    Its message is one line that names what was written and the way out, so that a command-line
    tool can print it alone, without a traceback.
    """

    def __init__(self, message: str):
        # Another process, of a data loader say, tells its error by a traceback, whose end this is
        _, _, message = message.rpartition(f"{__name__}.UsageError: ")
        super().__init__(" ".join(map(str.strip, message.splitlines())))


def one_line(error: BaseException) -> str:
    """What an error that is not a UsageError says: its kind and its message."""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(f"{type(error).__name__}: {message}".split()).removesuffix(":")


@contextmanager
def building(what: str, source: str = "this config") -> Iterator[None]:
    """
    Around what makes `what` of `source`, with values that Detectron2 alone can judge.

    Raises:
        UsageError: it can't be made; the line names the place that found out.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # of whatever the values have made impossible
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"{what} can't be built from {source}: {one_line(error)} "
            f"({place.name} in {Path(place.filename).name}, line {place.lineno})"
        ) from error


@contextmanager
def ends_with_one_line() -> Iterator[None]:
    """
    Around a command-line tool's work: a UsageError becomes a line on stderr and status 2, a Ctrl-C
    another line and status 130.
    """
    tool = Path(sys.argv[0]).name
    try:
        yield
    except UsageError as error:
        print(f"{tool}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{tool}: stopped", file=sys.stderr)
        sys.exit(130)

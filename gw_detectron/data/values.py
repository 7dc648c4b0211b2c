"""Values of a JSON file in COCO's format, and the line where they are something else."""

import contextlib
import json
import math
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import UsageError

# Of numbers: beyond it pycocotools ignores an object's area; no image has so many pixels
_LARGEST = 1e10

WRITTEN_AS_TEXT = "numbers written as text, taken as numbers"


def read_json(path: str, what: str = "annotation file") -> Any:
    """Raises UsageError where what should be there can't be read, or is not JSON."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            return json.load(f)
    except OSError as error:
        raise UsageError(f"the {what} {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a JSON file in UTF-8: {error}") from error


@contextlib.contextmanager
def mistakes_of(path: str) -> Iterator[None]:
    """Around checks of what a file holds: puts its path before a UsageError's message."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def require(is_right: bool, what: str, value: Any, kind: str) -> None:
    """Raises UsageError: `what` is `value`, not `kind`."""
    if not is_right:
        raise UsageError(f"{what} is {reprlib.repr(value)}, not {kind}")


def require_keys(entry: Any, keys: Sequence[str], where: str) -> None:
    """Raises UsageError where entry is not an object with these keys."""
    if not isinstance(entry, dict):
        raise UsageError(f"not in COCO format: {where} is not an object")
    for key in keys:
        if key not in entry:
            raise UsageError(f'not in COCO format: {where} has no "{key}"')


def numbers(value: Any) -> list[int | float] | None:
    """A list's values, texts of numbers as numbers; None where not all are finite numbers."""
    if not isinstance(value, list):
        return None
    if any(isinstance(one, str) for one in value):
        value = [_from_text(one) if isinstance(one, str) else one for one in value]
    if not {int, float}.issuperset(map(type, value)):
        return None
    within = not value or (-_LARGEST <= min(value) and max(value) <= _LARGEST)
    return value if within and math.isfinite(sum(value)) else None


def number(value: Any) -> int | float | None:
    """A number, or what a text says of one; None for anything else."""
    found = numbers([value])
    return found and found[0]


def _from_text(text: str) -> int | float | None:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return None

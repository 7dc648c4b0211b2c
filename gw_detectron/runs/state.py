"""What the runs in a comparison's directory have in common, so that no others get among them."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

from ..config import differences
from ..errors import UsageError
from ..files import LOCK_FILE

__all__ = ["State"]

_FILE = "comparison.json"


@dataclass
class State:
    """
    Attributes:
        config: of all runs, by full keys, without the incidental and the entries' overrides.
        datasets: name -> the paths of its annotations and images.
        entries: an entry's folder -> its overrides; of all calls so far.
    """

    config: dict[str, Any] = field(default_factory=dict)
    datasets: dict[str, list[str]] = field(default_factory=dict)
    entries: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str) -> "State | None":
        """None for a folder that is not there, or empty."""
        path = os.path.join(folder, _FILE)
        try:
            with open(path, encoding="utf-8") as f:
                return cls(**json.load(f))
        except (OSError, ValueError, TypeError) as error:
            if os.path.isdir(folder) and set(os.listdir(folder)) <= {LOCK_FILE}:
                return None
            if not os.path.exists(folder):
                return None
            raise UsageError(
                f"{folder} is not empty, and {_FILE} in it can't be read: choose another --output"
            ) from error

    def write(self, folder: str) -> None:
        path = os.path.join(folder, _FILE)
        with open(f"{path}.new", "w", encoding="utf-8") as f:
            json.dump(vars(self), f, indent=1)
        os.replace(f"{path}.new", path)

    def added_to(self, folder: str) -> "State":
        """
        This with the entries that the folder has already.

        Raises:
            UsageError: the folder holds something else, or one of the entries with other overrides.
        """
        before = State.read(folder)
        if before is None:
            return self
        now = State(**json.loads(json.dumps(vars(self))))  # tuples are lists there
        for there, here in ((before.config, now.config), (before.datasets, now.datasets)):
            if there != here:
                theirs, ours = differences([there, here])
                raise UsageError(
                    f"{folder} holds a comparison with {theirs}, not {ours}: "
                    "choose another --output"
                )
        for entry, overrides in now.entries.items():
            if before.entries.get(entry, overrides) != overrides:
                raise UsageError(
                    f"{folder} holds another {entry}, {' '.join(before.entries[entry])}: "
                    "choose another name or --output"
                )
        return State(now.config, now.datasets, before.entries | now.entries)

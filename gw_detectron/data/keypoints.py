"""The keypoints of a COCO file: their names, how mirroring exchanges them, and their values."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .values import WRITTEN_AS_TEXT, numbers

_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}
_SIDE = re.compile(r"left|right|(?<![^\W_])[lr](?![^\W_])", re.IGNORECASE)


@dataclass(frozen=True)
class Keypoints:
    """
    Attributes:
        names: in the order of their numbers.
        skeleton: pairs of names that are joined.
    """

    names: tuple[str, ...]
    skeleton: tuple[tuple[str, str], ...]

    @property
    def flip_map(self) -> list[tuple[str, str]]:
        """Those on the left and their counterparts on the right, by their names."""
        pairs = {name: _mirrored(name) for name in self.names}
        return [(name, other) for name, other in pairs.items() if other in pairs and name < other]

    def check(
        self, annotation: dict[str, Any], what: str, repairs: Counter[str], lacks: dict[str, str]
    ) -> None:
        """
        Makes the keypoints of an annotation [x, y, v, ...] and num_keypoints their number; notes
        in lacks where they are no such thing, and takes them for none.
        """
        given = annotation.get("keypoints")
        if not given:
            repairs["objects without keypoints, taken as not labelled"] += 1
            found = [0] * 3 * len(self.names)
        else:
            found = numbers(given)
            is_right = found is not None and len(found) == 3 * len(self.names)
            if not is_right or not {0, 1, 2}.issuperset(found[2::3]):
                lacks.setdefault(
                    "keypoints",
                    f"{what} has keypoints that are not {len(self.names)} times x, y and a "
                    "visibility of 0, 1 or 2",
                )
                found = [0] * 3 * len(self.names)
                repairs["keypoints that are no such thing, taken as not labelled"] += 1
            elif found != given:
                repairs[WRITTEN_AS_TEXT] += 1
        labelled = sum(visibility > 0 for visibility in found[2::3])
        if annotation.get("num_keypoints") != labelled:
            repairs["num_keypoints that are missing or wrong, counted"] += 1
        annotation["keypoints"], annotation["num_keypoints"] = found, labelled


def keypoints_of(categories: Sequence[dict[str, Any]], lacks: dict[str, str]) -> Keypoints | None:
    """
    Those of the categories that have "keypoints", the names; None where none has, or several have
    others. Notes in lacks why, and a keypoint of one side.
    """
    found = {}
    for category in categories:
        names = category.get("keypoints")
        if not names:
            continue
        if not isinstance(names, list) or not {str}.issuperset(map(type, names)):
            lacks["keypoints"] = f'the "keypoints" of category {category["name"]} are not names'
            return None
        if len(set(names)) < len(names):
            lacks["keypoints"] = f"category {category['name']} has two keypoints of one name"
            return None
        found[tuple(names)] = category
    if len(found) != 1:
        none = 'no category has "keypoints", their names'
        lacks["keypoints"] = "its categories have different keypoints" if found else none
        return None
    ((names, category),) = found.items()
    if one_sided := [name for name in names if _mirrored(name) not in names]:
        lacks["flip"] = f"there is a keypoint {one_sided[0]} and none of the other side"
    skeleton = category.get("skeleton")
    pairs = skeleton if isinstance(skeleton, list) else []
    joined = [
        (names[pair[0] - 1], names[pair[1] - 1])
        for pair in pairs
        if isinstance(pair, list)
        and len(pair) == 2
        and all(type(i) is int and 0 < i <= len(names) for i in pair)
    ]
    return Keypoints(names, tuple(joined))


def _mirrored(name: str) -> str:
    """ "right_eye" for "left_eye"; the name itself where it has no side."""

    def swap(match: re.Match) -> str:
        side = match[0]
        other = _SIDES[side.lower()]
        return other.upper() if side.isupper() else other.title() if side.istitle() else other

    return _SIDE.sub(swap, name, count=1)

"""What a comparison compares: norms by name, or named sets of overrides."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..modeling.norm import get_norm
from .experiment import norm_keys, stock_backbone

__all__ = ["Entry", "parse_entries"]


@dataclass(frozen=True)
class Entry:
    """
    Attributes:
        name: a norm's name, or that of a set of overrides.
        overrides: KEY, VALUE, KEY, VALUE, ..., as Detectron2 takes them from a command line.
    """

    name: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Its name, fit for a path and a shell: "GW-num_groups=16" for "GW(num_groups=16)"."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-.")


def parse_entries(texts: Iterable[str], config: Mapping[str, Any]) -> list[Entry]:
    """
    Args:
        texts: an entry each. A norm's name, such as "BN" or "GW(num_groups=16)", is put at every
            norm of the model: of the backbone, of the FPN, of the box head where it has
            convolutions, of the mask head where it is on, of RetinaNet's head. A builder that would
            place it at some of the backbone's norms only makes way for Detectron2's own.
            "NAME: KEY VALUE KEY VALUE ..." is a set of overrides, quoted as in a shell, on top of
            the config as it is.
        config: to which they are applied, by full keys.

    Raises:
        UsageError: an entry reads as neither, its norm is unknown, or two have the same name.
    """
    entries: dict[str, Entry] = {}
    for text in texts:
        is_set = ":" in text
        entry = _parse_set(text) if is_set else _put_everywhere(text.strip(), config)
        if not entry.folder:
            raise UsageError(f'--norms "{text}": it needs a name of letters or digits')
        other = entries.setdefault(entry.folder.lower(), entry)
        if other is not entry:
            raise UsageError(
                f'--norms: "{other.name}" and "{entry.name}" have the same folder {entry.folder}: '
                'name one of them otherwise, with "NAME: KEY VALUE ..."'
            )
    return list(entries.values())


def _put_everywhere(norm: str, config: Mapping[str, Any]) -> Entry:
    if re.fullmatch(r"[A-Z_]+(\.[A-Z0-9_]+)+", norm):
        raise UsageError(
            f"--norms {norm}: overrides of all runs go to the end, after another option, as in "
            f"--norms BN GW --seeds 3 {norm} VALUE"
        )
    try:
        get_norm(norm, 64)
    except ValueError as error:
        raise UsageError(f"--norms: {error}") from None
    overrides = [part for key in norm_keys(config).values() for part in (key, norm)]
    if stock_backbone(config) != config["MODEL.BACKBONE.NAME"]:
        overrides += ["MODEL.BACKBONE.NAME", stock_backbone(config)]
    return Entry(norm, tuple(overrides))


def _parse_set(text: str) -> Entry:
    name, _, rest = text.partition(":")
    try:
        overrides = shlex.split(rest)
    except ValueError as error:
        raise UsageError(f"--norms '{text}': {str(error).lower()}") from None
    if not overrides or len(overrides) % 2:
        raise UsageError(
            f"--norms '{text}': it should read \"NAME: KEY VALUE KEY VALUE ...\", with quotes "
            "around a value that has spaces or parentheses"
        )
    return Entry(name.strip(), tuple(overrides))

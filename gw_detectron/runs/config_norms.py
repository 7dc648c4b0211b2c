"""What a config says of its norms, and the norms that a comparison puts into it."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..modeling.norm import get_norm

__all__ = ["Config", "Entry", "norm_label", "norms", "parse_entries", "stock_backbone"]

Config = Mapping[str, Any]  # by full keys, as Run.config


def _norm_keys(config: Config) -> dict[str, str]:
    """
    The parts of the model that take a norm -> the key of it, the backbone first.

    A head whose key has no effect is left out: a box head without convolutions, a mask head
    that is off.
    """
    keys = {"backbone": "MODEL.RESNETS.NORM"}
    if "fpn" in str(config.get("MODEL.BACKBONE.NAME")):
        keys["FPN"] = "MODEL.FPN.NORM"
    architecture = config.get("MODEL.META_ARCHITECTURE")
    if architecture == "RetinaNet":
        keys["head"] = "MODEL.RETINANET.NORM"
    if architecture in ("GeneralizedRCNN", "PanopticFPN"):
        if config.get("MODEL.ROI_BOX_HEAD.NUM_CONV"):
            keys["box head"] = "MODEL.ROI_BOX_HEAD.NORM"
        if config.get("MODEL.MASK_ON"):
            keys["mask head"] = "MODEL.ROI_MASK_HEAD.NORM"
    if architecture in ("PanopticFPN", "SemanticSegmentor"):
        keys["semantic head"] = "MODEL.SEM_SEG_HEAD.NORM"
    return keys


def norms(config: Config) -> dict[str, str]:
    """
    The parts of the model -> their norms, "" for none; the backbone's may be "GW at S1-B2 over
    FrozenBN".
    """
    of_part = {part: config.get(key) or "" for part, key in _norm_keys(config).items()}
    base = config.get("MODEL.GW.BASE_NORM")
    is_placed = stock_backbone(config) != config.get("MODEL.BACKBONE.NAME")
    if is_placed and of_part["backbone"] != base:
        of_part["backbone"] += f" at {config.get('MODEL.GW.POSITIONS')} over {base}"
    return of_part


def stock_backbone(config: Config) -> str:
    """MODEL.BACKBONE.NAME, or for a builder of this package Detectron2's own of that backbone."""
    return str(config.get("MODEL.BACKBONE.NAME")).replace("build_gw_", "build_", 1)


def norm_label(config: Config) -> str:
    """
    What is said of the norms in a table: the backbone's, and each part's that has another one.
    Beside a frozen backbone norm the usual thing is none.
    """
    of_part = norms(config)
    backbone = of_part.pop("backbone")
    norm = config.get("MODEL.RESNETS.NORM")
    usual = "" if norm == "FrozenBN" else norm
    others = [f"{part} {n or 'none'}" for part, n in of_part.items() if n != usual]
    return ", ".join([backbone or "none", *others])


@dataclass(frozen=True)
class Entry:
    """
    What a comparison compares.

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


def parse_entries(texts: Iterable[str], config: Config) -> list[Entry]:
    """
    Args:
        texts: an entry each. A norm's name, such as "BN" or "GW(num_groups=16)", is put at every
            norm of the model. A builder that would place it at some of the backbone's norms only
            makes way for Detectron2's own.
            "NAME: KEY VALUE KEY VALUE ..." is a set of overrides, quoted as in a shell, on top of
            the config as it is.
        config: to which they are applied.

    Raises:
        UsageError: an entry reads as neither, its norm is unknown, or two have the same name.
    """
    entries: dict[str, Entry] = {}
    for text in texts:
        name, colon, overrides = map(str.strip, text.partition(":"))
        entry = Entry(name, _split(text, overrides) if colon else _everywhere(name, config))
        other = entries.setdefault(entry.folder.lower(), entry)
        if not entry.folder or other is not entry:
            raise UsageError(
                f'--norms "{text}": each entry needs a name of its own, with letters or digits; '
                '"NAME: KEY VALUE ..." gives one'
            )
    return list(entries.values())


def _everywhere(norm: str, config: Config) -> tuple[str, ...]:
    try:
        get_norm(norm, 64)
    except UsageError as error:
        raise UsageError(f"--norms: {error}") from error
    keys = dict.fromkeys(_norm_keys(config).values(), norm)
    if stock_backbone(config) != config["MODEL.BACKBONE.NAME"]:
        keys["MODEL.BACKBONE.NAME"] = stock_backbone(config)
    return tuple(part for pair in keys.items() for part in pair)


def _split(text: str, overrides: str) -> tuple[str, ...]:
    try:
        parts = tuple(shlex.split(overrides))
    except ValueError as error:
        raise UsageError(f"--norms '{text}': {str(error).lower()}") from error
    if not parts or len(parts) % 2:
        raise UsageError(
            f"--norms '{text}': it should read \"NAME: KEY VALUE KEY VALUE ...\", with quotes "
            "around a value that has spaces or parentheses"
        )
    return parts

"""What a config says of its norms, and the norms that a comparison puts into it."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..modeling.norm import OPTIONS, get_norm, parse_gw

__all__ = ["Entry", "norm_keys", "norm_label", "norms", "parse_entries", "stock_backbone"]

Config = Mapping[str, Any]  # by full keys, as Run.config


def norm_keys(config: Config) -> dict[str, str]:
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
    FrozenBN". One norm has one spelling.
    """
    of_part = {part: _one_spelling(config.get(key)) for part, key in norm_keys(config).items()}
    base = _one_spelling(config.get("MODEL.GW.BASE_NORM"))
    is_placed = stock_backbone(config) != config.get("MODEL.BACKBONE.NAME")
    if is_placed and of_part["backbone"] != base:
        of_part["backbone"] += f" at {config.get('MODEL.GW.POSITIONS')} over {base}"
    return of_part


def _one_spelling(norm: str | None) -> str:
    """E.g. "GW(num_groups=16)" of "GW( iterations = 5,num_groups=16)"."""
    name = (norm or "").strip()
    try:
        options = parse_gw(name)
    except UsageError:  # of a run whose version knew other options
        return name
    if options is None:
        return name
    stated = [
        f"{key}={str(options[key]).lower() if isinstance(default, bool) else options[key]}"
        for key, default in OPTIONS.items()
        if options.get(key, default) != default
    ]
    return f"GW({', '.join(stated)})" if stated else "GW"


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
    norm = _one_spelling(config.get("MODEL.RESNETS.NORM"))
    usual = "" if norm == "FrozenBN" else norm
    others = [f"{part} {n or 'none'}" for part, n in of_part.items() if n != usual]
    return ", ".join([backbone or "none", *others])


# ---- What a comparison compares --------------------------------------------------------------


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


def parse_entries(texts: Iterable[str], config: Config) -> list[Entry]:
    """
    Args:
        texts: an entry each. A norm's name, such as "BN" or "GW(num_groups=16)", is put at every
            norm of the model, see :func:`norm_keys`. A builder that would place it at some of the
            backbone's norms only makes way for Detectron2's own.
            "NAME: KEY VALUE KEY VALUE ..." is a set of overrides, quoted as in a shell, on top of
            the config as it is.
        config: to which they are applied.

    Raises:
        UsageError: an entry reads as neither, its norm is unknown, or two have the same name.
    """
    entries: dict[str, Entry] = {}
    for text in texts:
        entry = _parse_set(text) if ":" in text else _put_everywhere(text.strip(), config)
        if not entry.folder:
            raise UsageError(f'--norms "{text}": it needs a name of letters or digits')
        other = entries.setdefault(entry.folder.lower(), entry)
        if other is not entry:
            raise UsageError(
                f'--norms: "{other.name}" and "{entry.name}" have the same folder {entry.folder}: '
                'name one of them otherwise, with "NAME: KEY VALUE ..."'
            )
    return list(entries.values())


def _put_everywhere(norm: str, config: Config) -> Entry:
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

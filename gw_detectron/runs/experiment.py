"""What a config says about an experiment: its name, its norms, and which runs belong together."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..modeling.norm import OPTIONS, parse_gw

__all__ = [
    "backbone_norm",
    "canonical_norm",
    "config_label",
    "is_incidental",
    "norm_keys",
    "norm_label",
    "norms",
    "row_of",
    "stock_backbone",
    "weights_of",
]

Config = Mapping[str, Any]  # by full keys, as Run.config

# Where, when and how often it ran, and what it is called: no part of the experiment
_INCIDENTAL = (
    "SEED",
    "OUTPUT_DIR",
    "VERSION",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    "GLOBAL.",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
)
# What weights that were pre-trained with one norm dictate
_WEIGHTS = (
    "MODEL.WEIGHTS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "INPUT.FORMAT",
)
_BY_NORM = ("MODEL.BACKBONE.NAME", "MODEL.GW.", "TEST.PRECISE_BN.")


def _starts(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == p or (p.endswith(".") and key.startswith(p)) for p in prefixes)


def is_incidental(key: str) -> bool:
    """Whether two runs that differ only in this key are runs of one experiment."""
    return _starts(key, _INCIDENTAL)


# ---- Norms -----------------------------------------------------------------------------------


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
    """The parts of the model -> their norms, "" for none, by :func:`canonical_norm`."""
    return {part: canonical_norm(config.get(key)) for part, key in norm_keys(config).items()} | {
        "backbone": backbone_norm(config)
    }


def canonical_norm(norm: str | None) -> str:
    """One spelling for one norm: "GW( iterations = 5,num_groups=16)" is "GW(num_groups=16)"."""
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


def backbone_norm(config: Config) -> str:
    """A norm, or "GW at S1-B2 over FrozenBN"."""
    norm = canonical_norm(config.get("MODEL.RESNETS.NORM"))
    if not _is_placed(config):
        return norm
    base = canonical_norm(config.get("MODEL.GW.BASE_NORM"))
    return norm if norm == base else f"{norm} at {config.get('MODEL.GW.POSITIONS')} over {base}"


def _is_placed(config: Config) -> bool:
    return stock_backbone(config) != config.get("MODEL.BACKBONE.NAME")


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
    norm = canonical_norm(config.get("MODEL.RESNETS.NORM"))
    usual = "" if norm == "FrozenBN" else norm
    others = [f"{part} {n or 'none'}" for part, n in of_part.items() if n != usual]
    return ", ".join([backbone or "none", *others])


# ---- The rest of a config --------------------------------------------------------------------


def config_label(config: Config) -> str:
    """E.g. "Mask R-CNN R-50-FPN 4conv1fc, from scratch"."""
    label = f"{_architecture(config)} {_backbone(config)}"
    if config.get("MODEL.META_ARCHITECTURE") == "GeneralizedRCNN":
        num_conv = config.get("MODEL.ROI_BOX_HEAD.NUM_CONV")
        num_fc = config.get("MODEL.ROI_BOX_HEAD.NUM_FC")
        label += f" {f'{num_conv}conv' if num_conv else ''}{f'{num_fc}fc' if num_fc else ''}"
    return label.strip() + ("" if config.get("MODEL.WEIGHTS") else ", from scratch")


def _architecture(config: Config) -> str:
    name = str(config.get("MODEL.META_ARCHITECTURE"))
    if name != "GeneralizedRCNN":
        return name
    cascade = "Cascade " if config.get("MODEL.ROI_HEADS.NAME") == "CascadeROIHeads" else ""
    kind = "Mask" if config.get("MODEL.MASK_ON") else "Cascade" if cascade else "Faster"
    return f"{cascade if kind != 'Cascade' else ''}{kind} R-CNN"


def _backbone(config: Config) -> str:
    builder = stock_backbone(config)
    if "resnet" not in builder:
        return builder.removeprefix("build_").removesuffix("_backbone")
    depth, groups = config.get("MODEL.RESNETS.DEPTH"), config.get("MODEL.RESNETS.NUM_GROUPS", 1)
    width = config.get("MODEL.RESNETS.WIDTH_PER_GROUP")
    name = f"X-{depth}-{groups}x{width}d" if groups > 1 else f"R-{depth}"
    return f"{name}-FPN" if "fpn" in builder else name


def row_of(config: Config) -> dict[str, Any]:
    """
    What the runs of one row of a table of norms have in common: everything but the norms, what
    goes with them (where they are, the weights pre-trained with them and the input these want),
    and the incidental. Whether there are any pre-trained weights belongs to it.
    """
    row = {
        key: value
        for key, value in config.items()
        if not (is_incidental(key) or _starts(key, _BY_NORM + _WEIGHTS) or key.endswith(".NORM"))
    }
    row["MODEL.BACKBONE.NAME"] = stock_backbone(config)
    row["MODEL.WEIGHTS"] = "pre-trained" if config.get("MODEL.WEIGHTS") else ""
    return row


def weights_of(config: Config) -> dict[str, Any]:
    """The weights that it starts from, and the input that these want."""
    return {key: config.get(key) for key in _WEIGHTS}

"""Pre-training's config keys, and its schedule: in epochs here, in iterations for Detectron2."""

from detectron2.config import CfgNode

from ...config import flatten
from ...errors import UsageError

# Detectron2's keys that count iterations -> the key in epochs that takes their place here
_EPOCHS_FOR = {
    "SOLVER.MAX_ITER": "EPOCHS",
    "SOLVER.STEPS": "STEPS",
    "SOLVER.WARMUP_ITERS": "WARMUP_EPOCHS",
    "SOLVER.CHECKPOINT_PERIOD": "CHECKPOINT_EPOCHS",
    "TEST.EVAL_PERIOD": "EVAL_EPOCHS",
}


def add_pretraining_config(cfg: CfgNode) -> None:
    """
    Adds PRETRAINING, with the paper's recipe as its defaults, to cfg.

    Only this tool's configs have it, so that detectors' config.yaml files don't carry it about.
    """
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("train",), ("val",)  # folders in PRETRAINING.DATA

    cfg.PRETRAINING = node = CfgNode()
    # The folder whose train/ and val/ have one folder of images a class
    node.DATA = ""
    # 0 = as many as there are folders
    node.NUM_CLASSES = 0

    # Takes the place of SOLVER.MAX_ITER; an epoch has as many images as train/
    node.EPOCHS = 100
    # Of SOLVER.STEPS: the epochs after which the learning rate is multiplied by SOLVER.GAMMA
    node.STEPS = (30, 60, 90)
    # Of SOLVER.WARMUP_ITERS
    node.WARMUP_EPOCHS = 0
    # Of SOLVER.CHECKPOINT_PERIOD
    node.CHECKPOINT_EPOCHS = 1
    # Of TEST.EVAL_PERIOD; 0 = only at the end
    node.EVAL_EPOCHS = 1

    # Pixels. Training: the side of the square that random crops are scaled to
    node.SIZE_TRAIN = 224
    # Evaluation: what the shorter side is scaled to, then the side of the square in the centre
    node.RESIZE_TEST = 256
    node.SIZE_TEST = 224


def with_schedule(cfg: CfgNode, num_images: int) -> CfgNode:
    """
    A copy of cfg with Detectron2's keys in iterations set from PRETRAINING's in epochs.

    Args:
        num_images: the number of training images.
    """
    cfg = cfg.clone()
    cfg.defrost()

    def iterations(epochs: int) -> int:
        return max(1, round(epochs * num_images / cfg.SOLVER.IMS_PER_BATCH)) if epochs else 0

    for key, name in _EPOCHS_FOR.items():
        epochs = cfg.PRETRAINING[name]
        is_one = isinstance(epochs, int)
        cfg.merge_from_list([key, iterations(epochs) if is_one else tuple(map(iterations, epochs))])
    cfg.freeze()
    return cfg


def check_pretraining(cfg: CfgNode, defaults: CfgNode) -> None:
    """
    Args:
        defaults: cfg as it was before anything was merged into it.

    Raises:
        UsageError: where cfg asks for what pre-training does in another way, or can't do.
    """
    if cfg.MODEL.META_ARCHITECTURE != "ImageClassifier":
        raise UsageError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is not an ImageClassifier; "
            "take a --config-file in configs/ImageNet-Classification"
        )
    values, untouched = flatten(cfg), flatten(defaults)
    for key, name in _EPOCHS_FOR.items():
        if values[key] != untouched[key]:
            raise UsageError(
                f"{key} {values[key]}: pre-training counts in epochs; "
                f"set PRETRAINING.{name} instead"
            )
    pretraining = cfg.PRETRAINING
    for name in ("EPOCHS", "CHECKPOINT_EPOCHS"):
        if pretraining[name] < 1:
            raise UsageError(f"PRETRAINING.{name} {pretraining[name]} is below 1")
    if cfg.INPUT.FORMAT != "RGB":
        raise UsageError(f"INPUT.FORMAT {cfg.INPUT.FORMAT}: pre-training reads RGB")
    if not 0 < pretraining.SIZE_TEST <= pretraining.RESIZE_TEST:
        raise UsageError(
            f"PRETRAINING.SIZE_TEST {pretraining.SIZE_TEST} does not fit in "
            f"PRETRAINING.RESIZE_TEST {pretraining.RESIZE_TEST}"
        )
    if len(cfg.DATASETS.TRAIN) != 1:
        raise UsageError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} is not one folder of DATA")
    if not cfg.MODEL.WEIGHTS:
        _check_training_from_scratch(cfg)


def _check_training_from_scratch(cfg: CfgNode) -> None:
    if any(n.startswith("FrozenBN") for n in (cfg.MODEL.RESNETS.NORM, cfg.MODEL.GW.BASE_NORM)):
        raise UsageError(
            "FrozenBN has no statistics before there are weights: use BN for MODEL.RESNETS.NORM "
            "and MODEL.GW.BASE_NORM; the detectors freeze it"
        )
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        raise UsageError(
            f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} would keep random weights; "
            "use 0"
        )

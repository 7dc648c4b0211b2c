"""Pre-training as Detectron2 trains, from a command line to a file that detectors start from."""

import argparse
import logging
import os
from collections import OrderedDict

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ... import config
from ...checkpoint import require_weights
from ...checkpoint.facts import KEY, facts
from ...errors import UsageError
from ..check import check_config
from ..output_dir import claimed
from ..training import evaluate, train
from . import data
from .classifier import ImageClassifier
from .config import add_pretraining_config, check_pretraining, with_schedule
from .trainer import ClassifierTrainer

logger = logging.getLogger("detectron2.gw")


def setup(args: argparse.Namespace) -> CfgNode:
    """
    The frozen config that args describe, its PRETRAINING.NUM_CLASSES counted in the data.

    Args:
        args: of tools/pretrain_imagenet.py: config_file, opts, trust_config, data, eval_only,
            resume, num_gpus, num_machines.

    Raises:
        UsageError: on a mistake in the arguments, the config, the overrides or the data's folders.
    """
    cfg = get_cfg()
    add_pretraining_config(cfg)
    defaults = cfg.clone()
    config.load_config(args.config_file, args.opts, args.trust_config, cfg)
    check_pretraining(cfg, defaults)
    check_config(cfg, args)
    _set_data(cfg, args)
    require_weights(cfg, args.resume)
    cfg.freeze()
    return cfg


def _set_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    cfg.PRETRAINING.DATA = args.data or cfg.PRETRAINING.DATA
    if not cfg.PRETRAINING.DATA:
        raise UsageError(
            "--data DIR is missing: the images, in DIR/train/<class>/ and DIR/val/<class>/"
        )
    names = tuple(cfg.DATASETS.TEST)
    if not args.eval_only:
        names = (*cfg.DATASETS.TRAIN, *names)
    found = len(data.find_classes(cfg, names))
    if cfg.PRETRAINING.NUM_CLASSES not in (0, found):
        raise UsageError(
            f"PRETRAINING.NUM_CLASSES {cfg.PRETRAINING.NUM_CLASSES}: the data has {found} classes"
        )
    cfg.PRETRAINING.NUM_CLASSES = found


def main(args: argparse.Namespace) -> OrderedDict:
    """
    Trains, or with args.eval_only evaluates; training leaves in OUTPUT_DIR checkpoints,
    backbone.pth, metrics.json and log.txt.

    Args:
        args: as of :func:`setup`.

    Returns:
        OrderedDict: "classification" -> "top1", "top5" -> percent, of the last evaluation.
    """
    cfg = setup(args)
    with claimed(cfg, args):
        if args.eval_only:
            results, _ = evaluate(ClassifierTrainer, cfg, args.resume)
        else:
            num_images = len(data.images_in(cfg, cfg.DATASETS.TRAIN[0]))
            trainer = ClassifierTrainer(with_schedule(cfg, num_images))
            logger.info(_describe(trainer.cfg, num_images))
            results, model = train(trainer, args.resume)
            if comm.is_main_process():
                save_backbone(model, os.path.join(cfg.OUTPUT_DIR, "backbone.pth"), cfg)
    if comm.is_main_process():
        values = flatten_results_dict(results).items()
        logger.info(", ".join(f"{name} {value:.2f}" for name, value in values))
    return results


def _describe(cfg: CfgNode, num_images: int) -> str:
    solver = cfg.SOLVER
    drops = f", times {solver.GAMMA:g} after {', '.join(map(str, solver.STEPS))}"
    return (
        f"{num_images} images of {cfg.PRETRAINING.NUM_CLASSES} classes, {solver.IMS_PER_BATCH} a "
        f"batch: {cfg.PRETRAINING.EPOCHS} epochs are {solver.MAX_ITER} iterations; learning rate "
        f"{solver.BASE_LR:g}{drops if solver.STEPS else ''}"
    )


def save_backbone(model: ImageClassifier, path: str, cfg: CfgNode) -> None:
    """
    Writes the backbone of a classifier in the format of Detectron2's model zoo, with its norms and
    input format.

    The names are the backbone's own; "matching_heuristics" makes Detectron2 find them in any
    detector. Batch norm's count of batches is left out: FrozenBN has none, and BN does without.
    """
    weights = {
        name: value.cpu()
        for name, value in model.backbone.state_dict().items()
        if not name.endswith(".num_batches_tracked")
    }
    content = {"model": weights, "__author__": "gw_detectron", "matching_heuristics": True}
    with PathManager.open(path, "wb") as file:
        torch.save(content | {KEY: facts(cfg)}, file)
    logger.info(
        f"The backbone is in {path}: train a detector with the same MODEL.RESNETS and "
        f"MODEL.GW.POSITIONS, and MODEL.WEIGHTS {path}"
    )

"""Pre-training as Detectron2 trains, from a command line to a file that detectors start from."""

import argparse
import logging
import os
from collections import OrderedDict

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from ... import config
from ...checkpoint import require_weights
from ...errors import UsageError
from ..command_line import add_trust_argument
from ..failures import explained
from ..launch import checked_by_main_process
from ..output_dir import claimed, require_room, set_up
from . import data
from .config import add_pretraining_config, check_config, with_schedule
from .trainer import Trainer
from .weights import ClassifierCheckpointer, save_backbone

logger = logging.getLogger("detectron2.gw")


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's own arguments, and --data."""
    parser = default_argument_parser()
    parser.description = (
        "Trains a backbone as an image classifier on a folder in ImageNet's layout, and writes "
        "OUTPUT_DIR/backbone.pth, which detectors take as MODEL.WEIGHTS. Recipes are in "
        "configs/ImageNet-Classification."
    )
    add_trust_argument(parser)
    parser.add_argument(
        "--data",
        default="",
        metavar="DIR",
        help="the images, in DIR/train/<class>/ and DIR/val/<class>/",
    )
    return parser


def load_config(args: argparse.Namespace) -> CfgNode:
    """
    The frozen config that args describe, its PRETRAINING.NUM_CLASSES counted in the data.

    Raises:
        UsageError: on a mistake in the arguments, the config, the overrides or the data's folders.
    """
    cfg = get_cfg()
    add_pretraining_config(cfg)
    defaults = cfg.clone()
    config.load_config(args.config_file, args.opts, args.trust_config, cfg)
    num_processes = max(comm.get_world_size(), args.num_gpus * args.num_machines)
    check_config(cfg, defaults, num_processes)
    config.choose_device(cfg, num_processes)
    _set_data(cfg, args)
    _check_weights(cfg, args)
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


def _check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    resumes = args.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if args.eval_only and not cfg.MODEL.WEIGHTS and not resumes:
        raise UsageError(
            "--eval-only needs trained weights: add MODEL.WEIGHTS FILE, or --resume for the last "
            f"checkpoint in OUTPUT_DIR {cfg.OUTPUT_DIR}"
        )
    require_weights(cfg, args.resume)


def main(args: argparse.Namespace) -> OrderedDict:
    """
    Trains, or with args.eval_only evaluates; training leaves in OUTPUT_DIR checkpoints,
    backbone.pth, metrics.json and log.txt.

    Args:
        args: from :func:`argument_parser`.

    Returns:
        OrderedDict: "classification" -> "top1", "top5" -> percent, of the last evaluation.
    """
    cfg = load_config(args)
    with claimed(cfg, args.resume, args.eval_only):
        set_up(cfg, args)
        if cfg.MODEL.DEVICE == "cpu":
            logger.info("Running on the CPU.")
        results = evaluate(cfg, args.resume) if args.eval_only else train(cfg, args.resume)
    if comm.is_main_process():
        values = flatten_results_dict(results).items()
        logger.info(", ".join(f"{name} {value:.2f}" for name, value in values))
    return results


def evaluate(cfg: CfgNode, resume: bool = False) -> OrderedDict:
    """Evaluates MODEL.WEIGHTS, or with resume the last checkpoint in OUTPUT_DIR."""
    model = Trainer.build_model(cfg)
    checkpointer = ClassifierCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def train(cfg: CfgNode, resume: bool = False) -> OrderedDict:
    """
    Trains from MODEL.WEIGHTS or from scratch, or with resume from the last checkpoint.

    Raises:
        UsageError: training diverged, or the disk has no room.
    """
    num_images = data.count_train_images(cfg)
    trainer = Trainer(with_schedule(cfg, num_images))
    trainer.resume_or_load(resume=resume)
    checked_by_main_process(require_room, trainer)
    logger.info(_describe(trainer.cfg, num_images))
    with explained(trainer):
        trainer.train()
    if comm.is_main_process():
        model = getattr(trainer.model, "module", trainer.model)
        save_results(cfg, trainer.ema.model if trainer.ema else model, averaged=bool(trainer.ema))
    return getattr(trainer, "_last_eval_results", OrderedDict())


def _describe(cfg: CfgNode, num_images: int) -> str:
    solver = cfg.SOLVER
    drops = f", times {solver.GAMMA:g} after {', '.join(map(str, solver.STEPS))}"
    return (
        f"{num_images} images of {cfg.PRETRAINING.NUM_CLASSES} classes, {solver.IMS_PER_BATCH} a "
        f"batch: {cfg.PRETRAINING.EPOCHS} epochs are {solver.MAX_ITER} iterations; learning rate "
        f"{solver.BASE_LR:g}{drops if solver.STEPS else ''}"
    )


def save_results(cfg: CfgNode, model: nn.Module, averaged: bool) -> None:
    """Writes backbone.pth and, where model holds averaged weights, all of it as model_ema.pth."""
    if averaged:
        with PathManager.open(os.path.join(cfg.OUTPUT_DIR, "model_ema.pth"), "wb") as file:
            torch.save({"model": model.state_dict()}, file)
    path = os.path.join(cfg.OUTPUT_DIR, "backbone.pth")
    save_backbone(model, path)
    logger.info(
        f"The backbone is in {path}: train a detector with the same MODEL.RESNETS and "
        f"MODEL.GW.POSITIONS, and MODEL.WEIGHTS {path}"
    )

"""A detector trained or evaluated, from a command line to the results on disk."""

import argparse
import logging
import os
from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from .. import config
from ..checkpoint import WeightsCheckpointer, require_weights
from ..data.coco import adapt_config, register_datasets, require_files
from ..errors import UsageError, building
from ..norms.advice import warn_over_limit
from .check import check_config
from .detection_sheet import save_detection_sheet
from .failures import explained
from .output_dir import claimed
from .trainer import Trainer

logger = logging.getLogger("detectron2.gw")


def setup(args: argparse.Namespace) -> CfgNode:
    """
    The frozen config that args describe, its datasets registered; writes nothing.

    Args:
        args: of tools/train_net.py: config_file, opts, trust_config, dataset, eval_only, resume,
            num_gpus, num_machines.

    Raises:
        UsageError: on a mistake in the config, the overrides, the datasets or the weights.
    """
    cfg = config.load_config(args.config_file, args.opts, args.trust_config)
    check_config(cfg, args)
    stated = config.stated_keys(args.config_file, args.opts, args.trust_config)
    adapt_config(cfg, register_datasets(args.dataset), stated, args.eval_only)
    require_weights(cfg, args.resume)
    for name in (*(() if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
        require_files(name)
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> OrderedDict:
    """
    Trains, or with args.eval_only evaluates, and leaves in OUTPUT_DIR the weights, metrics.json,
    log.txt and detections.png.

    Args:
        args: as of :func:`setup`.

    Returns:
        OrderedDict: task ("bbox", "segm") -> metric -> value, of the last evaluation.
    """
    cfg = setup(args)
    with claimed(cfg, args):
        for dataset in register_datasets(args.dataset) if comm.is_main_process() else ():
            logger.info(dataset.report)
        if args.eval_only:
            results, model = evaluate(Trainer, cfg, args.resume)
        else:
            results, model = train(Trainer(cfg), args.resume)
        if comm.is_main_process():
            report(cfg, model, results)
    return results


def train(trainer: Trainer, resume: bool = False) -> tuple[OrderedDict, torch.nn.Module]:
    """
    Trains from MODEL.WEIGHTS, or with resume from the last checkpoint in OUTPUT_DIR.

    Returns:
        (the last evaluation, the model)

    Raises:
        UsageError: training diverged, or the disk is full.
    """
    trainer.resume_or_load(resume)
    warn_over_limit(trainer.model)
    with explained(trainer):
        trainer.train()
    results = getattr(trainer, "_last_eval_results", OrderedDict())
    return results, getattr(trainer.model, "module", trainer.model)


def evaluate(
    trainer: type[Trainer], cfg: CfgNode, resume: bool = False
) -> tuple[OrderedDict, torch.nn.Module]:
    """Evaluates MODEL.WEIGHTS, or with resume the last checkpoint in OUTPUT_DIR."""
    with building("the model"):
        model = trainer.build_model(cfg)
    checkpointer = WeightsCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg, whole=True)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UsageError(
            "--eval-only needs trained weights: add MODEL.WEIGHTS FILE, or --resume for the last "
            f"checkpoint in OUTPUT_DIR {cfg.OUTPUT_DIR}"
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results, model


def report(cfg: CfgNode, model: torch.nn.Module, results: OrderedDict) -> None:
    """Draws detections.png of a model that finds instances; logs the APs and where all lies."""
    files = ["metrics.json", "log.txt"]
    if cfg.DATASETS.TEST and cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor":
        files.insert(0, "detections.png")
        path = os.path.join(cfg.OUTPUT_DIR, "detections.png")
        save_detection_sheet(cfg, model, cfg.DATASETS.TEST[0], path)
    if len(cfg.DATASETS.TEST) == 1:
        results = {cfg.DATASETS.TEST[0]: results}
    for dataset, tasks in results.items():
        for task, metrics in tasks.items():
            values = ", ".join(f"{name} {value:.1f}" for name, value in list(metrics.items())[:6])
            logger.info(f"{dataset}, {task}: {values}")
    logger.info(f"Results are in {cfg.OUTPUT_DIR}: {', '.join(files)}")

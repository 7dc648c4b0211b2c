"""A command line, and what it does with a config."""

import argparse
import logging
import os
from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from .. import config
from ..checkpoint import WeightsCheckpointer, require_weights
from ..data.coco import adapt_config, register_datasets, require_files
from ..errors import UsageError
from ..norms.advice import warn_over_limit
from .check import check_config
from .detections import save_detection_sheet
from .failures import building, explained
from .launch import checked_by_main_process
from .output_dir import claimed, require_room, set_up
from .trainer import Trainer

logger = logging.getLogger("detectron2.gw")


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's own arguments, and --dataset."""
    parser = default_argument_parser()
    parser.description = (
        "Trains or evaluates a detector: Detectron2's train_net, which also runs on the CPU where "
        "there is no GPU and takes COCO-format data from the command line."
    )
    add_dataset_argument(parser)
    add_trust_argument(parser)
    return parser


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --dataset NAME ANNOTATIONS.json IMAGE_DIR, what :func:`register_datasets` takes."""
    parser.add_argument(
        "--dataset",
        action="append",
        nargs=3,
        default=[],
        metavar=("NAME", "ANNOTATIONS.json", "IMAGE_DIR"),
        help="register COCO-format data as NAME, to be used in DATASETS.TRAIN or DATASETS.TEST; "
        "NUM_CLASSES is set from it unless the config states it. Repeatable",
    )


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --trust-config, see :func:`gw_detectron.config.read_config_file`."""
    parser.add_argument(
        "--trust-config",
        action="store_true",
        help="take YAML tags, which can run code, in every config file",
    )


def load_config(args: argparse.Namespace) -> CfgNode:
    """
    The frozen config that args describe, its datasets registered; writes nothing.

    Raises:
        UsageError: on a mistake in the config, the overrides, the datasets or the weights.
    """
    cfg = config.load_config(args.config_file, args.opts, args.trust_config)
    check_config(cfg, args.eval_only)
    num_processes = max(comm.get_world_size(), args.num_gpus * args.num_machines)
    if config.choose_device(cfg, num_processes):
        print("No GPU on this machine: running on the CPU.", flush=True)
    if not args.eval_only:
        _check_batch(cfg, num_processes)
    datasets = register_datasets(args.dataset)
    stated = config.stated_keys(args.config_file, args.opts, args.trust_config)
    adapt_config(cfg, datasets, stated, args.eval_only)
    require_weights(cfg, args.resume)
    for name in (*(() if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
        require_files(name)
    cfg.freeze()
    return cfg


def _check_batch(cfg: CfgNode, num_processes: int) -> None:
    batch = cfg.SOLVER.IMS_PER_BATCH
    is_scaled = cfg.SOLVER.REFERENCE_WORLD_SIZE not in (0, num_processes)
    if batch < 1 or (batch % num_processes and not is_scaled):
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {batch} can't be shared out among {num_processes} processes"
        )


def main(args: argparse.Namespace) -> OrderedDict:
    """
    Trains, or with args.eval_only evaluates, and leaves in OUTPUT_DIR the weights, metrics.json,
    log.txt and detections.png.

    Args:
        args: from :func:`argument_parser`.

    Returns:
        OrderedDict: task ("bbox", "segm") -> metric -> value, of the last evaluation.
    """
    cfg = load_config(args)
    with claimed(cfg, args.resume, args.eval_only, args.config_file):
        set_up(cfg, args)
        if args.eval_only:
            results, model = evaluate(cfg, args.resume)
        else:
            results, model = train(cfg, args.resume)
        if comm.is_main_process():
            report(cfg, model, results)
    return results


def evaluate(cfg: CfgNode, resume: bool = False) -> tuple[OrderedDict, torch.nn.Module]:
    """Evaluates MODEL.WEIGHTS, or with resume the last checkpoint in OUTPUT_DIR."""
    with building("the model"):
        model = Trainer.build_model(cfg)
    checkpointer = WeightsCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UsageError(
            "--eval-only needs trained weights: add MODEL.WEIGHTS FILE, or --resume for the last "
            f"checkpoint in OUTPUT_DIR {cfg.OUTPUT_DIR}"
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results, model


def train(cfg: CfgNode, resume: bool = False) -> tuple[OrderedDict, torch.nn.Module]:
    """
    Trains from MODEL.WEIGHTS, or with resume from the last checkpoint in OUTPUT_DIR.

    Raises:
        UsageError: training diverged, or the disk has no room.
    """
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    checked_by_main_process(require_room, trainer)
    warn_over_limit(trainer.model)
    with explained(trainer):
        trainer.train()
    results = getattr(trainer, "_last_eval_results", OrderedDict())
    return results, getattr(trainer.model, "module", trainer.model)


def report(cfg: CfgNode, model: torch.nn.Module, results: OrderedDict) -> None:
    """Draws detections.png, and logs the APs and where everything lies."""
    files = ["metrics.json", "log.txt"]
    if cfg.DATASETS.TEST:
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

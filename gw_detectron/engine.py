"""Training and evaluation as Detectron2 does it, from a command line to the results on disk."""

import argparse
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    verify_results,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch.multiprocessing import ProcessRaisedException

from .checkpoint import require_weights
from .config import merge_into
from .data.coco import adapt_config, register_datasets
from .errors import UsageError
from .results.detections import save_detection_sheet

logger = logging.getLogger("detectron2.gw")

# Metadata's evaluator_type -> what evaluates such a dataset, from its name and an output folder
EVALUATORS: dict[str, list[Callable[[str, str], DatasetEvaluator]]] = {
    "coco": [lambda name, folder: COCOEvaluator(name, output_dir=folder)],
    "sem_seg": [lambda name, folder: SemSegEvaluator(name, output_dir=folder)],
    "coco_panoptic_seg": [
        lambda name, folder: SemSegEvaluator(name, output_dir=folder),
        lambda name, folder: COCOEvaluator(name, output_dir=folder),
        COCOPanopticEvaluator,
    ],
    "lvis": [lambda name, folder: LVISEvaluator(name, output_dir=folder)],
    "pascal_voc": [lambda name, folder: PascalVOCDetectionEvaluator(name)],
    "cityscapes_instance": [lambda name, folder: CityscapesInstanceEvaluator(name)],
    "cityscapes_sem_seg": [lambda name, folder: CityscapesSemSegEvaluator(name)],
}


class Trainer(DefaultTrainer):
    """DefaultTrainer that evaluates every kind of dataset Detectron2 has an evaluator for."""

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind not in EVALUATORS:
            raise UsageError(
                f"dataset {dataset_name} has evaluator_type {kind}; Detectron2 evaluates "
                + ", ".join(EVALUATORS)
            )
        return DatasetEvaluators([build(dataset_name, output_folder) for build in EVALUATORS[kind]])

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: torch.nn.Module) -> OrderedDict:
        """Evaluates with test-time augmentation (TEST.AUG); its results' names end in _TTA."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{task}_TTA", metrics) for task, metrics in results.items())


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's own arguments, and --dataset."""
    parser = default_argument_parser()
    parser.description = (
        "Trains or evaluates a detector: Detectron2's train_net, which also runs on the CPU where "
        "there is no GPU and takes COCO-format data from the command line."
    )
    add_dataset_argument(parser)
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


def run(
    main: Callable[[argparse.Namespace], Any],
    load_config: Callable[[argparse.Namespace], CfgNode],
    args: argparse.Namespace,
) -> None:
    """
    Runs main(args) in this process, or in one process a GPU of every machine.

    Args:
        load_config: what finds the mistakes in args. It is called first where there will be several
            processes, since one that stops alone leaves the others waiting for it.

    Raises:
        UsageError: of whichever process, on a mistake in what args name.
    """
    if args.num_gpus > max(1, torch.cuda.device_count()):
        raise UsageError(
            f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()} GPUs"
        )
    if args.num_gpus * args.num_machines > 1:
        load_config(args)
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessRaisedException as error:  # a process of launch's tells by its traceback only
        _, mistake, line = str(error).rpartition(f"{UsageError.__module__}.UsageError: ")
        if mistake:
            raise UsageError(line.strip()) from error
        raise


def load_config(args: argparse.Namespace) -> CfgNode:
    """
    The frozen config that args describe, its datasets registered; writes nothing.

    Raises:
        UsageError: on a mistake in the config, the overrides, the datasets or the weights.
    """
    cfg = get_cfg()
    merge_into(cfg, args.config_file, args.opts)
    datasets = register_datasets(args.dataset)
    adapt_config(cfg, datasets, args.config_file, args.opts, args.eval_only)
    require_weights(cfg, args.resume)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        print("No GPU on this machine: running on the CPU.", flush=True)
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


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
    default_setup(cfg, args)
    if args.eval_only:
        results, model = evaluate(cfg, args.resume)
    else:
        results, model = train(cfg, args.resume)
    if comm.is_main_process():
        report(cfg, model, results)
    return results


def evaluate(cfg: CfgNode, resume: bool = False) -> tuple[OrderedDict, torch.nn.Module]:
    """Evaluates MODEL.WEIGHTS, or with resume the last checkpoint in OUTPUT_DIR."""
    model = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
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
    """Trains from MODEL.WEIGHTS, or with resume from the last checkpoint in OUTPUT_DIR."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks(
            [hooks.EvalHook(0, lambda: trainer.test_with_TTA(cfg, trainer.model))]
        )
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

"""Detectron2's DefaultTrainer, made to hold on every machine and through every interruption."""

import logging
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable

import torch
from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..data.images import ImageMapper
from ..errors import UsageError, building
from ..norms.diagnostics_hook import NormDiagnosticsHook
from .checkpointer import Checkpointer
from .interruption import StopWhenAsked, let_workers_be
from .resumption import ORDER, STEP, make_resumable, random_numbers_of, seed_of

logger = logging.getLogger("detectron2.gw")


class Trainer(DefaultTrainer):
    """
    DefaultTrainer that also trains with several processes and with SOLVER.AMP on the CPU, whose
    checkpoints are never half written, which saves one when it is asked to end, and which evaluates
    every kind of dataset Detectron2 has an evaluator for. Unless SEED is negative, a run that is
    resumed ends with the weights of one that was never stopped, on the CPU bit for bit;
    TEST.PRECISE_BN's images alone begin anew.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's constructor, with what it takes no argument for: the loader's seed,
        # processes without GPUs, the loop for AMP on the CPU, and the checkpointer
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        with building("the model"):
            model = self.build_model(cfg)
        with building("the optimizer"):
            optimizer = self.build_optimizer(cfg, model)
        with building("the learning rate's schedule"):
            self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        data = f"the data of DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}"
        with building("what loads the training images", f"{data} and this config"):
            loader = let_workers_be(self._build_resumable_loader())
        on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
        device_ids = {} if on_gpu else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **device_ids)
        loop = SimpleTrainer
        if cfg.SOLVER.AMP.ENABLED:
            loop = AMPTrainer if on_gpu else CPUAMPTrainer
        self._trainer = loop(model, loader, optimizer)
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, cfg=cfg, trainer=weakref.proxy(self)
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def _build_resumable_loader(self):
        self._image_order = None
        if self.cfg.SEED < 0:
            return self.build_train_loader(self.cfg)
        with random_numbers_of(self.cfg.SEED, ORDER):
            loader = self.build_train_loader(self.cfg)
        self._image_order = make_resumable(loader, self.cfg.SEED)
        return loader

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        return build_detection_train_loader(cfg, mapper=ImageMapper(DatasetMapper(cfg, True)))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        mapper = ImageMapper(DatasetMapper(cfg, False))
        return let_workers_be(build_detection_test_loader(cfg, dataset_name, mapper=mapper))

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        if self._image_order:
            self._image_order.skip(self.start_iter)
        elif self.start_iter:
            logger.info(
                "The order of the images begins anew: SEED is negative, or the loader one's own"
            )

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        # The optimizer's momentum goes to the classes to which the weights have gone
        parameters = dict(self.checkpointer.model.named_parameters())
        for name, rows in self.checkpointer.class_rows.items():
            of_parameter = self.optimizer.state.get(parameters.get(name), {})
            for key, value in of_parameter.items():
                if torch.is_tensor(value) and value.shape == parameters[name].shape:
                    of_parameter[key] = value[rows]

    def run_step(self) -> None:
        if self.cfg.SEED >= 0:
            seed_all_rng(seed_of(self.cfg.SEED, STEP, self.iter, comm.get_rank()))
        super().run_step()

    def build_hooks(self) -> list[hooks.HookBase | None]:
        built = super().build_hooks()
        at = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        if self.cfg.TEST.AUG.ENABLED:  # after the evaluation, before what writes the metrics
            built.insert(at + 1, hooks.EvalHook(0, self._evaluate_with_TTA))
        built.insert(at, StopWhenAsked())
        if self.cfg.MODEL.GW.DIAGNOSTICS_PERIOD > 0:
            built.append(NormDiagnosticsHook(self.model, self.cfg.MODEL.GW.DIAGNOSTICS_PERIOD))
        return built

    def _evaluate_with_TTA(self) -> OrderedDict:
        results = self.test_with_TTA(self.cfg, self.model)
        self._last_eval_results.update(results)
        return results

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> evaluation.DatasetEvaluator:
        """
        Every evaluator that Detectron2 has for a dataset of this kind, as one.

        Raises:
            UsageError: it has none.
        """
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind not in _EVALUATORS:
            raise UsageError(
                f"dataset {dataset_name} has evaluator_type {kind}; Detectron2 evaluates "
                + ", ".join(_EVALUATORS)
            )
        evaluators = [evaluator(cfg, dataset_name, folder) for evaluator in _EVALUATORS[kind]]
        return evaluation.DatasetEvaluators(evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: torch.nn.Module) -> OrderedDict:
        """Evaluates with test-time augmentation (TEST.AUG); its results' names end in _TTA."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{task}_TTA", metrics) for task, metrics in results.items())


def _coco(cfg: CfgNode, name: str, folder: str) -> evaluation.DatasetEvaluator:
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    return evaluation.COCOEvaluator(name, output_dir=folder, kpt_oks_sigmas=sigmas)


def _sem_seg(_: CfgNode, name: str, folder: str) -> evaluation.DatasetEvaluator:
    return evaluation.SemSegEvaluator(name, output_dir=folder)


# Metadata's evaluator_type -> what evaluates such a dataset, from a config, its name and a folder
_EVALUATORS = {
    "coco": [_coco],
    "sem_seg": [_sem_seg],
    "coco_panoptic_seg": [_sem_seg, _coco, lambda _, *of: evaluation.COCOPanopticEvaluator(*of)],
    "lvis": [lambda _, name, folder: evaluation.LVISEvaluator(name, output_dir=folder)],
    "pascal_voc": [lambda _, name, __: evaluation.PascalVOCDetectionEvaluator(name)],
    "cityscapes_instance": [lambda _, name, __: evaluation.CityscapesInstanceEvaluator(name)],
    "cityscapes_sem_seg": [lambda _, name, __: evaluation.CityscapesSemSegEvaluator(name)],
}


class CPUAMPTrainer(SimpleTrainer):
    """
    Detectron2's AMPTrainer for the CPU, which that one refuses: in bfloat16, whose range is that of
    float32, so that losses need no scaling.
    """

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.model(data)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()

"""The detectors' Trainer, for image classification."""

from collections import OrderedDict

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from torch.utils.data import DataLoader

from ... import engine
from ..interruption import StopWhenAsked, let_workers_be
from . import data
from .batch_statistics import ShareBatchStatistics
from .ema import EMA
from .evaluation import TopKEvaluator

CHECKPOINTS_KEPT = 2  # beside model_final.pth; an epoch's checkpoint of a large model is 1 GB


class Trainer(engine.Trainer):
    """
    The detectors' Trainer on a folder of images, evaluated by top-1 and top-5.

    Attributes:
        ema: the :class:`EMA` hook, or None.
    """

    def build_hooks(self) -> list[HookBase]:
        ret = super().build_hooks()
        trained = getattr(self.model, "module", self.model)
        pretraining = self.cfg.PRETRAINING
        self.ema = EMA(trained, pretraining.EMA.DECAY) if pretraining.EMA.ENABLED else None
        models = [trained, self.ema.model] if self.ema else [trained]
        periods = (self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.TEST.EVAL_PERIOD)
        # what changes the model comes before what saves or evaluates it
        readers = (hooks.PeriodicCheckpointer, StopWhenAsked, hooks.EvalHook)
        at = next(i for i, hook in enumerate(ret) if isinstance(hook, readers))
        ret[at:at] = [self.ema, ShareBatchStatistics(models, periods)]
        if self.ema:
            at = next(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook))
            ret.insert(at, hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test_ema))
        for hook in ret:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.max_to_keep = CHECKPOINTS_KEPT
        return ret

    def _test_ema(self) -> OrderedDict:
        results = self.test(self.cfg, self.ema.model)
        return OrderedDict((f"{task}_ema", metrics) for task, metrics in results.items())

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return data.build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return let_workers_be(data.build_test_loader(cfg, dataset_name))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> TopKEvaluator:
        return TopKEvaluator()

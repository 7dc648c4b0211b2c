"""The detectors' Trainer, for image classification: its evaluation, and batch norm's statistics."""

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from ..interruption import StopWhenAsked, let_workers_be
from ..trainer import Trainer
from . import data

CHECKPOINTS_KEPT = 2  # beside model_final.pth; an epoch's checkpoint of a large model is 1 GB


class ClassifierTrainer(Trainer):
    """The detectors' Trainer on a folder of images, evaluated by top-1 and top-5."""

    def build_hooks(self) -> list[HookBase]:
        built = super().build_hooks()
        model = getattr(self.model, "module", self.model)
        periods = (self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.TEST.EVAL_PERIOD)
        # what changes the model comes before what saves or evaluates it
        readers = (hooks.PeriodicCheckpointer, StopWhenAsked, hooks.EvalHook)
        at = next(i for i, hook in enumerate(built) if isinstance(hook, readers))
        built.insert(at, ShareBatchStatistics(model, periods))
        for hook in built:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.max_to_keep = CHECKPOINTS_KEPT
        return built

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return data.build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return let_workers_be(data.build_test_loader(cfg, dataset_name))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> "TopKEvaluator":
        return TopKEvaluator()


class TopKEvaluator(DatasetEvaluator):
    """How often the right class is the first, or among the first five, of a classifier's guesses"""

    def reset(self) -> None:
        self._counts = [0, 0, 0]  # of images, right at first, right among five

    def process(self, inputs: dict[str, torch.Tensor], outputs: torch.Tensor) -> None:
        """
        Args:
            inputs: a batch, its "label" (N,).
            outputs: logits, (N, classes); with five classes or fewer every image is right in top-5.
        """
        guesses = outputs.topk(min(5, outputs.shape[1])).indices.cpu()
        right = guesses == inputs["label"].cpu()[:, None]
        self._counts[0] += len(right)
        self._counts[1] += int(right[:, 0].sum())
        self._counts[2] += int(right.sum())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        Over the images that all processes have seen, in percent: {"classification": {"top1",
        "top5"}} on the main process, else None.
        """
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        images, first, five = map(sum, zip(*gathered, strict=True))
        return {"classification": {"top1": 100 * first / images, "top5": 100 * five / images}}


class ShareBatchStatistics(HookBase):
    """
    Makes batch norm's running statistics the same on every GPU at every multiple of the periods and
    at the end. Detectron2's trainers let each process keep its own: what is evaluated would be
    another model on every GPU, and what is saved the statistics of the first GPU's images alone.
    """

    def __init__(self, model: nn.Module, periods: tuple[int, ...]):
        """
        Args:
            periods: in iterations; 0 means never.
        """
        self._model = model
        self._periods = [period for period in periods if period]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % period == 0 for period in self._periods):
            share_batch_statistics(self._model)


@torch.no_grad()
def share_batch_statistics(model: nn.Module) -> None:
    """
    Sets every process's running means and variances to those over all processes' images.

    The variance over all is the mean of the variances plus the variance of the means.
    """
    if comm.get_world_size() == 1:
        return
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.track_running_stats:
            mean = norm.running_mean.double()
            moments = torch.stack([mean, norm.running_var.double() + mean.square()])
            distributed.all_reduce(moments)
            mean, square = moments / comm.get_world_size()
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(square - mean.square())

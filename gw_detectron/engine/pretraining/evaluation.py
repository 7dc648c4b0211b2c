"""How often the right class is the first, or among the first five, of a classifier's guesses."""

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class TopKEvaluator(DatasetEvaluator):
    """Top-1 and top-5 in percent, over the images that all processes have seen."""

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
        """Returns {"classification": {"top1", "top5"}} on the main process, else None."""
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        images, first, five = map(sum, zip(*gathered, strict=True))
        return {"classification": {"top1": 100 * first / images, "top5": 100 * five / images}}

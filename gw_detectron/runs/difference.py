"""
The differences between the APs of norms, with intervals for the two sources of chance: the seeds of
the runs, and the choice of the test images.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from tqdm import tqdm

from ..errors import UsageError
from .detections import kept_results, load_ground_truth, read_results
from .resampling import resampled_aps
from .run import Run

__all__ = ["Difference", "ap_differences"]

logger = logging.getLogger("detectron2.gw")

_SAMPLES = 1000  # of the images
_PERCENT = 95  # of an interval


@dataclass(frozen=True)
class Difference:
    """
    AP with one norm minus AP with another, in percent.

    Attributes:
        mean: over the pairs of runs of the same seed; without any, that of the mean APs.
        num_pairs: the number of such pairs.
        over_seeds: Student's 95 % confidence interval; None with fewer than two pairs.
        over_images: the middle 95 % of the means on 1000 random samples of the images, of the same
            runs (a percentile bootstrap); None where a run's detections are not there.
    """

    norm: str
    other: str
    mean: float
    num_pairs: int
    over_seeds: tuple[float, float] | None
    over_images: tuple[float, float] | None

    @property
    def is_none(self) -> bool:
        """Whether an interval holds 0: then chance alone might have made the difference."""
        intervals = (self.over_seeds, self.over_images)
        return any(low <= 0 <= high for low, high in filter(None, intervals))

    def __str__(self) -> str:
        """E.g. "GW - GN: +2.1, [0.4, 3.8] over 3 seeds, [1.2, 3.0] over images"."""
        text = f"{self.norm} - {self.other}: {'none, ' * self.is_none}{self.mean:+.1f}"
        over = {f"{self.num_pairs} seeds": self.over_seeds, "images": self.over_images}
        for what, interval in over.items():
            text += ", [{:.1f}, {:.1f}] over ".format(*interval) + what if interval else ""
        return text


def ap_differences(
    runs_of: Mapping[str, Sequence[Run]], dataset: str, task: str = "bbox"
) -> list[Difference]:
    """
    Subtracts, for every two norms, the AP of the earlier one from that of the later one.

    Args:
        runs_of: norm -> runs that were evaluated on the dataset.
        task: "bbox" or "segm", of which all runs have an AP.
    """
    if len(runs_of) < 2:
        return []
    samples = _samples([run for runs in runs_of.values() for run in runs], dataset, task)
    found = []
    for (other, theirs), (norm, ours) in itertools.combinations(runs_of.items(), 2):
        pairs = _pairs(ours, theirs)
        sides = list(zip(*pairs, strict=True)) or [ours, theirs]
        aps = [np.array([run.final(dataset)[f"{task}/AP"] for run in side]) for side in sides]
        over_seeds = _student(aps[0] - aps[1]) if len(pairs) > 1 else None
        over_images = None
        if samples:
            means = [np.mean([samples[run.path] for run in side], axis=0) for side in sides]
            tail = (100 - _PERCENT) / 2
            over_images = tuple(np.nanpercentile(means[0] - means[1], [tail, 100 - tail]))
        mean = aps[0].mean() - aps[1].mean()
        found.append(Difference(norm, other, mean, len(pairs), over_seeds, over_images))
    return found


def _pairs(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """The runs with a seed in common. A negative seed means a random one, which pairs nothing."""
    by_seed = [{run.config["SEED"]: run for run in runs} for runs in (ours, theirs)]
    common = sorted(seed for seed in by_seed[0].keys() & by_seed[1].keys() if seed >= 0)
    return [(by_seed[0][seed], by_seed[1][seed]) for seed in common]


def _student(values: np.ndarray) -> tuple[float, float]:
    """The confidence interval of the mean of normally distributed values."""
    quantile = stats.t.ppf((1 + _PERCENT / 100) / 2, len(values) - 1)
    half = quantile * stats.sem(values)
    return values.mean() - half, values.mean() + half


def _samples(runs: Sequence[Run], dataset: str, task: str) -> dict[str, np.ndarray]:
    """Path of a run -> its AP on each sample of the images; empty where there is one without."""
    samples = {}
    try:
        truth = load_ground_truth(dataset)
        for run in tqdm(runs, f"{dataset}: AP on samples of the images", disable=None, unit="run"):
            file = kept_results(run, truth)
            if file is None:
                raise UsageError(f"{run.path} has kept no detections there")
            detections = read_results(run.label, file, truth)
            if task == "segm" and not detections.has_masks:
                raise UsageError(f"not all detections in {file} have masks")
            evaluation = detections.evaluate(task)
            num_images = len(evaluation.params.imgIds)
            random = np.random.default_rng(0)  # the same samples for all runs
            counts = random.multinomial(num_images, [1 / num_images] * num_images, _SAMPLES)
            samples[run.path] = resampled_aps(evaluation, counts)
    except UsageError as error:
        logger.warning(f"no intervals over the images of {dataset}: {error}")
        return {}
    return samples

"""The AP of detections on random samples of the images."""

from collections.abc import Iterator

import numpy as np
from pycocotools.cocoeval import COCOeval

__all__ = ["resampled_aps"]


def resampled_aps(evaluation: COCOeval, counts: np.ndarray) -> np.ndarray:
    """
    COCO's AP on samples of a dataset's images, which may have an image several times.

    Detections are matched with objects image by image, so all samples share the matches: a
    detection or object counts as often as its image is in the sample.

    Args:
        evaluation: over one range of areas, evaluated and not yet accumulated.
        counts: (samples, images), how often each sample has each of `evaluation.params.imgIds`.

    Returns:
        (samples,), in percent; nan for a sample without an object.
    """
    recalls = evaluation.params.recThrs
    sums, classes = np.zeros(len(counts)), np.zeros(len(counts))
    for objects, images, true, counted in _classes(evaluation, counts.shape[1]):
        of_sample = counts @ objects
        for sample in np.flatnonzero(of_sample):
            weights = counts[sample, images]
            hits = np.cumsum(true * weights, axis=1)
            precision = hits / np.maximum(np.cumsum(counted * weights, axis=1), 1)
            # at each recall the highest precision at that recall or above, 0 where there is none
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            precision = np.pad(precision, ((0, 0), (0, 1)))
            reached = [np.searchsorted(recall, recalls) for recall in hits / of_sample[sample]]
            sums[sample] += np.take_along_axis(precision, np.array(reached), axis=1).mean()
            classes[sample] += 1
    with np.errstate(invalid="ignore"):
        return 100 * sums / classes


def _classes(evaluation: COCOeval, num_images: int) -> Iterator[tuple[np.ndarray, ...]]:
    """
    Of each class with an object: the number of objects in each image; of its D detections, the
    highest score first, the positions of the images, (D,), and at each of T overlaps whether they
    are right and whether they count, (T, D).
    """
    for start in range(0, len(evaluation.evalImgs), num_images):
        of_class = enumerate(evaluation.evalImgs[start : start + num_images])
        found = [(image, result) for image, result in of_class if result is not None]
        objects = np.zeros(num_images)
        for image, result in found:
            objects[image] = np.count_nonzero(np.equal(result["gtIgnore"], 0))
        if not objects.any():
            continue
        scores = np.concatenate([result["dtScores"] for _, result in found])
        order = np.argsort(-scores, kind="mergesort")  # as in COCOeval, where ties keep their order
        images = np.concatenate([np.full(len(r["dtScores"]), image) for image, r in found])
        matched, ignored = (
            np.concatenate([result[key] for _, result in found], axis=1)[:, order] > 0
            for key in ("dtMatches", "dtIgnore")
        )
        yield objects, images[order], matched & ~ignored, ~ignored

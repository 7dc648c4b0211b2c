"""
What makes a run that is resumed end as if it had never been stopped: its images, their augmentation
and all its other random numbers depend on SEED and on where in training they are used, on no more.
"""

import contextlib
import functools
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

# What random numbers are for: the second part of their key, after SEED
ORDER, IMAGE, STEP = range(3)


def seed_of(*key: int) -> int:
    """A seed for every sequence of numbers, none of them negative."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@contextlib.contextmanager
def random_numbers_of(*key: int) -> Iterator[None]:
    """
    In the block, the random numbers of Python, NumPy and PyTorch on the CPU are those of the key;
    after it they resume where they were.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = seed_of(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def make_resumable(loader: Iterable, seed: int) -> "ImageOrder | None":
    """
    Makes the batches of a training loader depend on the seed and their number alone; how many
    workers load the images does not matter then.

    Args:
        loader: as Detectron2's build_detection_train_loader returns it, not yet iterated over, its
            sampler made among the :func:`random_numbers_of` (seed, ORDER). It is changed in place.

    Returns:
        what can skip batches; None for a loader of another kind, which is left as it is.
    """
    is_grouped = isinstance(loader, AspectRatioGroupedDataset)
    data_loader = loader.dataset if is_grouped else loader
    images = getattr(data_loader, "dataset", None)
    if not isinstance(images, ToIterableDataset):
        return None
    records = getattr(images.dataset, "_dataset", images.dataset) if is_grouped else None
    order = ImageOrder(images.sampler, loader.batch_size, records)
    images.sampler = order
    images.dataset = _SeededImages(images.dataset, seed)
    if is_grouped:  # its workers give one image in turn, not one batch
        images.shard_chunk_size = 1
    data_loader.generator = torch.Generator()  # else its iterator would draw from the global one
    return order


class ImageOrder(Sampler):
    """
    The indices of one of Detectron2's training samplers, each with its position in the order that
    all processes share: (position, index).
    """

    def __init__(
        self,
        sampler: Iterable[int],
        batch_size: int,
        records: Sequence[dict[str, Any]] | None = None,
    ):
        """
        Args:
            batch_size: of one process.
            records: the dataset, where an image waits for others of its kind, wider than high or
                not, to make a batch; None where a batch is of whatever comes.
        """
        self._sampler = sampler
        self._batch_size = batch_size
        self._records = records
        self._rank, self._num_processes = comm.get_rank(), comm.get_world_size()
        self._waiting: list[tuple[int, int]] = []
        self._num_taken = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from self._waiting
        yield from itertools.islice(self._from_start(), self._num_taken, None)

    def _from_start(self) -> Iterator[tuple[int, int]]:
        positions = itertools.count(self._rank, self._num_processes)
        return zip(positions, self._sampler, strict=False)

    def skip(self, num_batches: int) -> None:
        """Begins after so many batches, first with the images that were waiting there."""
        waiting = defaultdict(list)
        is_wide = functools.cache(self._is_wide)
        self._num_taken = 0
        from_start = self._from_start()
        while num_batches:
            position, index = next(from_start)
            self._num_taken += 1
            batch = waiting[is_wide(index)]
            batch.append((position, index))
            if len(batch) == self._batch_size:
                batch.clear()
                num_batches -= 1
        self._waiting = sorted(itertools.chain(*waiting.values()))

    def _is_wide(self, index: int) -> bool:
        if self._records is None:
            return False
        record = self._records[index]
        return record.get("width", 0) > record.get("height", 0)


class _SeededImages(Dataset):
    """The image of a (position, index), augmented with the random numbers of the position."""

    def __init__(self, images: Dataset, seed: int):
        self._images = images
        self._seed = seed

    def __getitem__(self, numbered: tuple[int, int]) -> Any:
        position, index = numbered
        with random_numbers_of(self._seed, IMAGE, position):
            return self._images[index]

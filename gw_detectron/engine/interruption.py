"""Training that is asked to end: by Ctrl-C, a scheduler, a machine that is about to go."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TypeVar

from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import DataLoader

L = TypeVar("L", bound=Iterable)


@contextlib.contextmanager
def heeding(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """
    In the block, the handler is called on what asks a process to end, SIGINT, SIGTERM and SIGHUP,
    unless it was told to ignore it, as nohup does. A thread's block is left as it is.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():  # Python's condition
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class StopWhenAsked(HookBase):
    """
    On SIGINT, SIGTERM or SIGHUP, training ends after the iteration in progress with a checkpoint
    and a KeyboardInterrupt; all processes end, whichever is asked. A process that trains alone
    doesn't wait for the end of an evaluation. A second SIGINT ends the iteration too, unsaved.

    It stands among the hooks after what changes the model and before what evaluates it.
    """

    def __init__(self):
        self._asked = False
        self._last_whole: int | None = None  # iteration
        self._heeding = contextlib.ExitStack()

    def before_train(self) -> None:
        self._asked, self._last_whole = False, None
        self._heeding.enter_context(heeding(self._ask))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._asked = True
        if comm.get_world_size() == 1 and self._is_whole():
            raise KeyboardInterrupt
        if comm.is_main_process():  # not by print, which the signal may have interrupted
            os.write(2, b"\nStopping after this iteration, saved. Ctrl-C again: at once.\n")

    def _is_whole(self) -> bool:
        return self._last_whole == self.trainer.iter

    def after_step(self) -> None:
        self._asked = any(comm.all_gather(self._asked))
        self._last_whole = self.trainer.iter
        if self._asked and self.trainer.iter + 1 < self.trainer.max_iter:
            raise KeyboardInterrupt

    def after_train(self) -> None:
        with self._heeding:  # which ends here
            if self._asked and self._is_whole():
                name = f"model_{self.trainer.iter:07d}"  # as Detectron2 names it
                self.trainer.checkpointer.save(name, iteration=self.trainer.iter)


def let_workers_be(loader: L) -> L:
    """
    Has the workers of one of Detectron2's loaders, not yet iterated over, end when their parent
    asks, and for nobody else: signals often go to every process there is, and the iteration in
    progress needs its images.

    Returns:
        the loader.
    """
    data_loader = loader.dataset if isinstance(loader, AspectRatioGroupedDataset) else loader
    if isinstance(data_loader, DataLoader):
        init = functools.partial(_heed_parent_alone, data_loader.worker_init_fn)
        data_loader.worker_init_fn = init
    return loader


def _heed_parent_alone(init: Callable[[int], None] | None, worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where SIGTERM remains PyTorch's
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_if_asked_by, args=(os.getppid(),), daemon=True).start()
    if init:
        init(worker)


def _end_if_asked_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

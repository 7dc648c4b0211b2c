import logging
import os
import signal

import pytest
import torch

# Without a GPU Triton's kernels run in its interpreter. Triton asks when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Detectron2's loggers keep the stream of the test that made them, which pytest has closed by then.
logging.raiseExceptions = False


@pytest.fixture
def heeded_signals():
    """A shell may have told the tests to ignore them, as it tells what runs in the background."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)

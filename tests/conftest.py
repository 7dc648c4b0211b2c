import itertools
import logging
import os
import signal

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if HAS_GPU:
    # What deterministic algorithms need of cuBLAS, which asks when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Some images allow it everywhere
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
else:
    # Without a GPU Triton's kernels run in its interpreter. Triton asks when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Detectron2's loggers keep the stream of the test that made them, which pytest has closed by then.
logging.raiseExceptions = False


def pytest_collection_modifyitems(config, items):
    """Tests marked gpu are where there is one."""
    if not HAS_GPU:
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("gpu")])
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def pytest_terminal_summary(terminalreporter):
    """On a GPU: the largest of the errors that tests have recorded, "row: column" each."""
    worst = {}
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        for name, error in getattr(report, "user_properties", ()):
            row, column = name.split(": ")
            columns = worst.setdefault(row, {})
            columns[column] = max(error, columns.get(column, 0.0))
    if HAS_GPU and worst:
        terminalreporter.section("largest relative errors against float64")
        for row, columns in sorted(worst.items()):
            errors = [f"{column} {error:.1e}" for column, error in columns.items()]
            terminalreporter.write_line(f"{row:24}{'   '.join(errors)}")


@pytest.fixture
def heeded_signals():
    """A shell may have told the tests to ignore them, as it tells what runs in the background."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)

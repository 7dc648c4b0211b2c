import logging
import os

import torch

# Without a GPU Triton's kernels run in its interpreter. Triton asks when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Detectron2's loggers keep the stream of the test that made them, which pytest has closed by then.
logging.raiseExceptions = False

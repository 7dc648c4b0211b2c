"""On what and in which arithmetic a benchmark runs."""

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass

import torch

from .. import __version__
from ..errors import UsageError

__all__ = ["DTYPES", "Machine"]

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        device: "cpu" or "cuda", the current one.
        arithmetic: one of DTYPES. "tf32" is float32 whose matrix products may use TF32.
        channels_last: the memory format of maps.
    """

    device: torch.device
    arithmetic: str
    channels_last: bool

    @classmethod
    def prepare(cls, device: str | None, arithmetic: str, channels_last: bool) -> "Machine":
        """
        Sets PyTorch to the arithmetic.

        Args:
            device: None for the GPU where there is one, and else the CPU.

        Raises:
            UsageError: there is no GPU for what asks for one.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: this machine has no GPU that PyTorch can use")
        if arithmetic == "tf32" and device == "cpu":
            raise UsageError("--dtype tf32 is for a GPU; the CPU takes float32")
        torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
        return cls(torch.device(device), arithmetic, channels_last)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.arithmetic]

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def describe(self) -> dict[str, str]:
        """What a reader of the figures has to know; heading -> text."""
        arithmetic = self.arithmetic
        if self.on_gpu:
            processor = f"{torch.cuda.get_device_name()}, driver {_driver()}"
            clock = "CUDA events"
            if self.dtype is torch.float32:
                by_convolutions = "with" if torch.backends.cudnn.allow_tf32 else "without"
                arithmetic += f", convolutions {by_convolutions} TF32"
        else:
            threads = torch.get_num_threads()
            processor = f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
            clock = "CPU time" if threads == 1 else "wall time"
        return {
            "processor": processor,
            "versions": f"gw_detectron {__version__}, PyTorch {torch.__version__}, "
            f"CUDA {torch.version.cuda}, Triton {_version('triton')}, "
            f"Python {platform.python_version()}",
            "arithmetic": arithmetic,
            "memory format": str(self.memory_format).removeprefix("torch."),
            "time": clock,
        }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.check_output(query, text=True, timeout=20).split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

"""
Launches a kernel twice through Triton's own launcher, on a CPU: a library of functions that do
nothing stands in the place of the GPU's driver, and prints what each launch hands to it.

    python -m tests.layers.empty_driver FOLDER    # for the library; needs gcc
"""

import os
import re
import subprocess
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.backends.nvidia import driver as nvidia  # noqa: E402

from gw_detectron.layers.triton_kernels.launch import Launch  # noqa: E402

from .compiled_kernels import Driver  # noqa: E402

# What it takes more than to return 0: a limit that every kernel keeps, and the launch, whose
# parameters are three addresses, of which Triton takes None out, a whole number and a real one.
LIBRARY = """
#include <stdio.h>
typedef struct { unsigned grid[3]; } Config;
int cuFuncGetAttribute(int *value, int which, void *function) { *value = 1024; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = 232448; return 0; }
int cuPointerGetAttribute(void *value, int which, size_t address) {
    *(size_t *)value = address; return 0; }
int cuLaunchKernelEx(Config *config, void *function, void **p, void **extra) {
    printf("%u %u %u: %zx %zx %d %g\\n", config->grid[0], config->grid[1], config->grid[2],
           *(size_t *)p[0], *(size_t *)p[1], *(int *)p[2], *(float *)p[3]);
    fflush(stdout); return 0; }
"""


@triton.jit(do_not_specialize=("number", "factor"))
def _kernel(x, absent, y, number, factor, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, tl.load(x + place) * factor + number)


def build(folder: Path) -> None:
    """Makes the library, with every function of the driver that Triton's sources name."""
    sources = Path(nvidia.__file__).parent.glob("driver.*")
    text = "".join(source.read_text() for source in sources if source.suffix != ".so")
    others = set(re.findall(r"\bcu[A-Z]\w+", text)) - set(re.findall(r"\bcu[A-Z]\w+", LIBRARY))
    code = LIBRARY + "".join(f"int {name}() {{ return 0; }}\n" for name in sorted(others))
    command = ["gcc", "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", folder / "libcuda.so.1"]
    subprocess.run(command, input=code, text=True, check=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")


def main(folder: Path) -> None:
    if not (folder / "libcuda.so").exists():  # the loader looks for it when a process begins
        build(folder)
        variables = {"TRITON_LIBCUDA_PATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
        command = [sys.executable, "-m", "tests.layers.empty_driver", str(folder)]
        sys.exit(subprocess.run(command, env={**os.environ, **variables}).returncode)
    driver = nvidia.CudaDriver()
    for name in ("get_current_target", "get_current_device", "get_current_stream"):
        setattr(driver, name, getattr(Driver(), name))
    driver.get_device_capability = lambda device=0: (9, 0)
    triton.runtime.driver.set_active(driver)
    torch.cuda.current_device = lambda: None  # that of a tensor on the CPU
    x, y = torch.zeros(64), torch.zeros(64)
    launch = Launch(_kernel, 7, -3, 0.5, SIZE=16)
    print(f"{x.data_ptr():x} {y.data_ptr():x}", flush=True)
    for _ in range(2):
        launch(x, None, y)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

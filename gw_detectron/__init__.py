"""
Group Whitening (CVPR 2021) for Detectron2.

After `import gw_detectron`, or with DETECTRON2_ENV_MODULE=gw_detectron in the environment of any
Detectron2 program, every place of Detectron2 that takes a norm takes "GW", every config has the
MODEL.GW keys, and the GW backbones and the built-in datasets are registered. Where Detectron2 isn't
installed, only `gw_detectron.layers` is there to use.
"""

import importlib.util

from .version import __version__

__all__ = ["__version__", "setup_environment"]


def setup_environment() -> None:
    """
    Registers everything with Detectron2; calling it again does nothing.

    Detectron2 itself calls this from its own `__init__` where DETECTRON2_ENV_MODULE names this
    package, so it may run while `detectron2`, or this package, is only half imported.
    """
    import detectron2  # noqa: F401  first: it may call this function, to the end, in its own import

    from . import checkpoint, config, data, modeling  # noqa: F401


if importlib.util.find_spec("detectron2") is not None:
    setup_environment()

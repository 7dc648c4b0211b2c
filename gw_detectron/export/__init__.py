"""
Trained detectors for where neither this package nor Detectron2 is: TorchScript, ONNX, torch.export.
"""

from .exporting import export
from .formats import FORMATS

__all__ = ["FORMATS", "export"]

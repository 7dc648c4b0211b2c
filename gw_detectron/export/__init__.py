"""
Trained detectors for where neither this package nor Detectron2 is: TorchScript, ONNX, torch.export.

A format is a module with

    FILE: the file's name
    IMPORT, RUN: the lines of Python that run it, from a numpy `image`; RUN is for str.format with
        the file's `path` and its `outputs`
    require(): raises UsageError where what it needs is not installed
    smallest_side(detector): of the images it takes, in pixels
    save(detector, image, path): writes it, made with the example `image`
    load(path): what runs it, from an image to the tensors that the detector returns
"""

from .exporting import FORMATS, export

__all__ = ["FORMATS", "export"]

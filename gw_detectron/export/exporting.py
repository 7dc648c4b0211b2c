"""From a config and weights to an exported model that was checked, and its report."""

import os
from collections.abc import Iterable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..errors import UsageError
from . import onnx, torch_export, torchscript
from .comparison import Detections, compare, score_limit
from .detector import Detector, exportable
from .held_out import example, find_held_out
from .report import Report, how_to_run, metadata, write_json
from .trained import class_names, load_config, load_model

FORMATS: dict[str, ModuleType] = {
    "torchscript": torchscript,
    "onnx": onnx,
    "torch_export": torch_export,
}


def export(
    format: str,
    output: str,
    config_file: str,
    opts: Sequence[str] = (),
    datasets: Iterable[Sequence[str]] = (),
    image: str = "",
) -> Report:
    """
    Leaves in `output` the model, metadata.json, report.json and report.md.

    Args:
        format: one of FORMATS.
        output: a folder that is new or empty.
        config_file, opts, datasets: as of :func:`load_config`.
        image: a file for the check, or "": see :func:`find_held_out`.

    Raises:
        UsageError: on a mistake in any of it, or a model that can't be exported.
    """
    form = FORMATS[format]
    form.require()
    _require_empty(output)
    cfg = load_config(config_file, opts, datasets)
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UsageError(f"INPUT.FORMAT {cfg.INPUT.FORMAT}: export takes RGB and BGR")
    model = load_model(cfg)
    detector = exportable(model)
    held_out, source, expected = find_held_out(cfg, model, image)
    if min(held_out.shape[1:]) < form.smallest_side(detector):
        raise UsageError(
            f"--format {format} takes images with sides of at least "
            f"{form.smallest_side(detector)} pixels; {source} comes to {held_out.shape[2]} x "
            f"{held_out.shape[1]} with INPUT.MIN_SIZE_TEST {cfg.INPUT.MIN_SIZE_TEST}"
        )

    path = os.path.join(output, form.FILE)
    found = _save_and_run(form, detector, held_out, path)
    limit = score_limit(expected, detector.score_threshold, detector.most_detections)
    report = Report(
        file=path,
        held_out=source,
        size=tuple(held_out.shape[1:]),
        comparison=compare(expected, found, limit),
        run=how_to_run(cfg, detector, form, path),
    )
    classes = class_names(cfg, detector.num_classes)
    write_json(os.path.join(output, "metadata.json"), metadata(cfg, detector, form, classes))
    report.write(output)
    return report


def _require_empty(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        if os.listdir(folder):
            raise UsageError(f"--output {folder} is not empty: name a new folder")
    except OSError as error:
        raise UsageError(f"--output {folder} can't be written to: {error.strerror}") from error


def _save_and_run(form: ModuleType, detector: Detector, image: Tensor, path: str) -> Detections:
    try:
        form.save(detector, example(image), path)
        return Detections(*form.load(path)(image))
    except UsageError:
        raise
    except Exception as error:  # of exporters and runtimes: any kind, at any length
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"PyTorch {torch.__version__} can't export this model to {form.FILE}: "
            f"{type(error).__name__}: {reason}"
        ) from error

"""What lies beside an exported model: how to call it, and how it was checked."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import detectron2
import torch
import torchvision
from detectron2.config import CfgNode

from ..version import __version__
from .comparison import (
    BOX_TOLERANCE,
    MASK_TOLERANCE,
    SCORE_TOLERANCE,
    Comparison,
)
from .detector import Detector

OUTPUTS = {
    "boxes": "float32 (detections, 4): x0, y0, x1, y1 in pixels of the input",
    "scores": "float32 (detections,): highest first",
    "classes": "int64 (detections,): indices into classes",
    "masks": "float32 (detections, M, M): probabilities, a grid over the detection's box",
}


@dataclass(frozen=True)
class Report:
    """
    Attributes:
        file: of the model.
        held_out, size: the image of the check in words, and its (height, width).
        run: the lines of Python that run the model on a picture's file.
    """

    file: str
    held_out: str
    size: tuple[int, int]
    comparison: Comparison
    run: str

    def check_lines(self) -> list[str]:
        c = self.comparison
        lines = [
            f"Checked on {self.held_out}, {self.size[1]} x {self.size[0]} pixels: of Detectron2's "
            f"{c.expected} detections and the export's {c.found}, {c.matched} match",
            f"Largest box difference: {c.box:.2g} pixels (up to {BOX_TOLERANCE:g} is allowed)",
            f"Largest score difference: {c.score:.2g} (up to {SCORE_TOLERANCE:g})",
        ]
        if c.mask is not None:
            lines.append(
                f"Largest difference of a mask's probability: {c.mask:.2g} (up to "
                f"{MASK_TOLERANCE:g})"
            )
        return lines

    def text(self) -> str:
        size = os.path.getsize(self.file) / 1e6
        lines = [f"{self.file}, {size:.1f} MB", *self.check_lines(), "", "To run it:", ""]
        return "\n".join(lines) + "\n" + "".join(f"  {line}\n" for line in self.run.splitlines())

    def write(self, folder: str) -> None:
        """report.json and report.md."""
        write_json(os.path.join(folder, "report.json"), asdict(self))
        with open(os.path.join(folder, "report.md"), "w", encoding="utf-8") as file:
            checks = "\n".join(f"- {line}" for line in self.check_lines())
            file.write(
                f"# {os.path.basename(self.file)}\n\n{checks}\n\nTo run it:\n\n"
                f"```python\n{self.run}```\n"
            )


def metadata(
    cfg: CfgNode, detector: Detector, form: ModuleType, classes: list[str] | None
) -> dict[str, Any]:
    """All that a caller of the model must know, for metadata.json."""
    return {
        "file": form.FILE,
        "input": {
            "name": "image",
            "type": "float32",
            "shape": [3, "height", "width"],
            "channels": cfg.INPUT.FORMAT,
            "values": "0 to 255, not normalised",
            "shorter_side": cfg.INPUT.MIN_SIZE_TEST,
            "longer_side_at_most": cfg.INPUT.MAX_SIZE_TEST,
            "sides_at_least": form.smallest_side(detector),
        },
        "outputs": {name: OUTPUTS[name] for name in detector.output_names},
        "classes": classes,
        "score_threshold": detector.score_threshold,
        "most_detections": detector.most_detections,
        "weights": os.path.basename(cfg.MODEL.WEIGHTS),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "detectron2": detectron2.__version__,
            "gw_detectron": __version__,
        },
    }


def how_to_run(cfg: CfgNode, detector: Detector, form: ModuleType, path: str) -> str:
    """Lines of Python from a picture's file to detections in its pixels, without this package."""
    shorter, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    scale = f"min({shorter} / min(picture.size), {longest} / max(picture.size))"
    reverse = "[:, :, ::-1]" if cfg.INPUT.FORMAT == "BGR" else ""
    lines = [
        "import numpy as np",
        form.IMPORT,
        "from PIL import Image",
        "",
        'picture = Image.open("picture.jpg").convert("RGB")',
        f"scale = {scale if shorter else 1}",
        "size = [round(scale * side) for side in picture.size]",
        "picture = picture.resize(size, Image.BILINEAR)",
        f"image = np.float32(picture){reverse}.transpose(2, 0, 1).copy()  # {cfg.INPUT.FORMAT}",
        form.RUN.format(path=path, outputs=", ".join(detector.output_names)),
        "boxes = boxes / scale",
    ]
    if "masks" in detector.output_names:
        lines.append("# masks[i] > 0.5 is the object, in a square grid over boxes[i]")
    return "\n".join(lines) + "\n"


def write_json(path: str, content: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")

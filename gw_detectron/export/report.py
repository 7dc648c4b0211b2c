"""How far an export's detections are from Detectron2's own, and what lies beside the model."""

import json
import os
import platform
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import detectron2
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import CfgNode
from torch import Tensor

from ..version import __version__
from .formats import Format

BOX_TOLERANCE = 0.5  # pixels
SCORE_TOLERANCE = 1e-3
MASK_TOLERANCE = 1e-2  # of a probability
# Of the detections that must match. Two boxes of nearly the same score, of which non-maximum
# suppression leaves one, or the last places of a limited number are decided by rounding.
SHARE = 0.95

OUTPUTS = {
    "boxes": "float32 (detections, 4): x0, y0, x1, y1 in pixels of the input",
    "scores": "float32 (detections,): highest first",
    "classes": "int64 (detections,): indices into classes",
    "masks": "float32 (detections, M, M): probabilities, a grid over the detection's box",
}


class Detections(NamedTuple):
    """In one image: (D, 4), (D,), (D,) and, of a model with masks, (D, M, M)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """
    Attributes:
        expected, found: the numbers of Detectron2's and of the export's detections.
        matched: of pairs, one of each, that agree in class and within the tolerances.
        box, score, mask: the largest difference in pixels and probabilities, of the pairs that
            match, or of all pairs where the two do not agree; mask is None without masks.
        agrees: nearly all detections match, see SHARE.
    """

    expected: int
    found: int
    matched: int
    box: float
    score: float
    mask: float | None
    agrees: bool


def compare(expected: Detections, found: Detections) -> Comparison:
    """
    Pairs the detections of each class, the nearest boxes first.

    Args:
        expected: not empty.
    """
    distance = (expected.boxes[:, None] - found.boxes).abs().amax(2).nan_to_num(torch.inf)
    distance[expected.classes[:, None] != found.classes] = torch.inf
    pairs, left = [], distance.clone()
    while left.numel() and left.min() < torch.inf:
        i, j = divmod(left.argmin().item(), left.shape[1])
        left[i], left[:, j] = torch.inf, torch.inf
        pairs.append((i, j))
    i, j = torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(1)

    tolerances = [BOX_TOLERANCE, SCORE_TOLERANCE]
    differences = [distance[i, j], (expected.scores[i] - found.scores[j]).abs()]
    if expected.masks is not None:
        tolerances.append(MASK_TOLERANCE)
        differences.append((expected.masks[i] - found.masks[j]).abs().flatten(1).amax(1))
    differences = torch.stack(differences)
    within = (differences <= torch.tensor(tolerances)[:, None]).all(0)
    matched, most = int(within.sum()), max(len(expected.scores), len(found.scores))
    if agrees := matched >= SHARE * most:
        differences = differences[:, within]
    largest = F.pad(differences, [0, 1]).amax(1).tolist()
    return Comparison(
        expected=len(expected.scores),
        found=len(found.scores),
        matched=matched,
        box=largest[0],
        score=largest[1],
        mask=None if expected.masks is None else largest[2],
        agrees=agrees,
    )


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

    def text(self) -> str:
        """In Markdown that reads well as it is."""
        c, (height, width) = self.comparison, self.size
        lines = [
            f"{self.file}, {os.path.getsize(self.file) / 1e6:.1f} MB",
            f"Checked on {self.held_out}, {width} x {height} pixels: of Detectron2's {c.expected} "
            f"detections and the export's {c.found}, {c.matched} match",
            f"Largest box difference: {c.box:.2g} pixels (up to {BOX_TOLERANCE:g} is allowed)",
            f"Largest score difference: {c.score:.2g} (up to {SCORE_TOLERANCE:g})",
        ]
        if c.mask is not None:
            lines.append(
                f"Largest difference of a mask's probability: {c.mask:.2g} (up to "
                f"{MASK_TOLERANCE:g})"
            )
        return "\n".join([*lines, "", "To run it:", "", textwrap.indent(self.run, "    ")])

    def write(self, folder: str, metadata: dict[str, Any]) -> None:
        """metadata.json, with the check's numbers, and report.md, the text."""
        check = {"image": self.held_out, "size": self.size, **asdict(self.comparison)}
        content = {"file": os.path.basename(self.file), **metadata, "check": check}
        for name, text in (
            ("metadata.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n"),
            ("report.md", self.text()),
        ):
            Path(folder, name).write_text(text, encoding="utf-8")


def metadata(cfg: CfgNode, outputs: Sequence[str], **facts: Any) -> dict[str, Any]:
    """All that a caller of the model must know, for metadata.json."""
    return {
        "input": {
            "name": "image",
            "type": "float32",
            "shape": [3, "height", "width"],
            "channels": cfg.INPUT.FORMAT,
            "values": "0 to 255, not normalised",
            "shorter_side": cfg.INPUT.MIN_SIZE_TEST,
            "longer_side_at_most": cfg.INPUT.MAX_SIZE_TEST,
            "sides_at_least": facts.pop("sides_at_least"),
        },
        "outputs": {name: OUTPUTS[name] for name in outputs},
        **facts,
        "most_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "weights": os.path.basename(cfg.MODEL.WEIGHTS),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "detectron2": detectron2.__version__,
            "gw_detectron": __version__,
        },
    }


def how_to_run(cfg: CfgNode, form: Format, path: str, outputs: Sequence[str]) -> str:
    """Lines of Python from a picture's file to detections in its pixels, without this package."""
    shorter, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    scale = f"min({shorter} / min(picture.size), {longest} / max(picture.size))"
    reverse = "[:, :, ::-1]" if cfg.INPUT.FORMAT == "BGR" else ""
    lines = [
        "import numpy as np",
        form.imports,
        "from PIL import Image",
        "",
        'picture = Image.open("picture.jpg").convert("RGB")',
        f"scale = {scale if shorter else 1}",
        "size = [round(scale * side) for side in picture.size]",
        "picture = picture.resize(size, Image.BILINEAR)",
        f"image = np.float32(picture){reverse}.transpose(2, 0, 1).copy()  # {cfg.INPUT.FORMAT}",
        form.run.format(path=path, outputs=", ".join(outputs)),
        "boxes = boxes / scale",
    ]
    if "masks" in outputs:
        lines.append("# masks[i] > 0.5 is the object, in a square grid over boxes[i]")
    return "\n".join(lines) + "\n"

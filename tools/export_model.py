#!/usr/bin/env python
"""A trained detector as TorchScript, ONNX or a torch.export program, checked; see --help."""

import argparse
import sys

from arguments import add_dataset, add_overrides, add_trust, run_tool, tool_parser

FORMATS = ("torchscript", "onnx", "torch_export")
EPILOG = """
formats:
  torchscript   model.ts: PyTorch and torchvision run it, in Python or C++
  onnx          model.onnx: ONNX Runtime and others run it; standard operators only
  torch_export  model.pt2: PyTorch and torchvision run it, or compile it

None of them needs this package or Detectron2 to run, and each takes images of any height and width.
Into DIR go also metadata.json (classes, what input and outputs are, versions), and report.md: how
far the export's detections are from Detectron2's on an image it was not made with, of --image, else
of DATASETS.TEST where that is here, else a drawn one. Where fewer than 95 % of them match, within
0.5 pixels and 0.001 of the score, the status is 1.

example:
  export_model.py --config-file output/mine/config.yaml --format onnx --output output/mine/onnx \\
    MODEL.WEIGHTS output/mine/model_final.pth
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(
        "Exports a trained Faster, Mask or Cascade R-CNN or RetinaNet, and checks it.", EPILOG
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the detector")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder, new or empty")
    parser.add_argument("--image", default="", metavar="FILE", help="a picture for the check")
    add_dataset(parser)
    add_trust(parser)
    add_overrides(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.export import export

    report = export(
        args.format, args.output, args.config_file, args.opts, args.dataset, args.image,
        args.trust_config,
    )  # fmt: skip
    print(report.text(), end="")
    comparison = report.comparison
    if not comparison.agrees:
        sys.exit(
            f"export_model.py: error: {report.file} does not detect what Detectron2 detects: "
            f"{comparison.matched} of {comparison.expected} detections match"
        )


if __name__ == "__main__":
    run_tool(argument_parser(), main)

#!/usr/bin/env python
"""Converts ImageNet weights of a ResNet to Detectron2's names; see --help."""

import argparse

from arguments import run_tool, tool_parser

EPILOG = """
IN is a PyTorch file in torchvision's names: from the authors of Group Whitening, from torchvision,
or your own. Depth, width, groups and where Group Whitening sits are read off its tensors and
printed; a missing, superfluous or misshapen tensor is an error. No code in IN is ever run.

example:
  python tools/convert_weights.py DOWNLOADED.pth weights/R-50-GW.pth
  and in a config: MODEL.WEIGHTS: "gw://R-50-GW.pth"
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(
        "Converts ImageNet weights of a ResNet or ResNeXt, 18 to 152, to Detectron2's names.",
        EPILOG,
    )
    parser.add_argument("source", metavar="IN", help="the PyTorch file to read")
    parser.add_argument("target", metavar="OUT", help="the file to write, NAME.pth")
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.checkpoint import convert_file

    print(convert_file(args.source, args.target))


if __name__ == "__main__":
    run_tool(argument_parser(), main)

#!/usr/bin/env python
"""Trains a backbone as an image classifier; see --help."""

import argparse

from arguments import run_tool, training_parser

EPILOG = """
The recipes in configs/ImageNet-Classification are the paper's.

example:
  pretrain_imagenet.py --config-file configs/ImageNet-Classification/R_50_gw.yaml \\
    --data IMAGENET --num-gpus 8 OUTPUT_DIR output/R-50-GW
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = training_parser(
        "Trains a backbone as an image classifier on a folder in ImageNet's layout, and writes "
        "OUTPUT_DIR/backbone.pth, which detectors take as MODEL.WEIGHTS.",
        EPILOG,
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="DIR",
        help="the images, in DIR/train/<class>/ and DIR/val/<class>/",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.engine import pretraining, run

    run(pretraining.main, pretraining.setup, args)


if __name__ == "__main__":
    run_tool(argument_parser(), main)

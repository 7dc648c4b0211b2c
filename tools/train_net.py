#!/usr/bin/env python
"""Trains or evaluates a detector; see --help."""

import argparse

from arguments import add_dataset, run_tool, training_parser

EPILOG = """
Detectron2's command line and configs. The data are checked before training starts, and it ends
with the AP table and detections.png in OUTPUT_DIR. Ctrl-C ends it after the iteration in progress,
with a checkpoint; --resume resumes it.

examples:
  train_net.py --config-file configs/quickstart/faster_rcnn_R_18_FPN_gw.yaml \\
    --dataset my_train train.json images/ --dataset my_val val.json images/ \\
    DATASETS.TRAIN "('my_train',)" DATASETS.TEST "('my_val',)" OUTPUT_DIR output/mine
  train_net.py --config-file output/mine/config.yaml --eval-only MODEL.WEIGHTS weights.pth
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = training_parser(
        "Trains or evaluates a detector: Detectron2's train_net, which also runs on the CPU where "
        "there is no GPU and takes COCO-format data from the command line.",
        EPILOG,
    )
    add_dataset(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron import engine

    engine.run(engine.main, engine.setup, args)


if __name__ == "__main__":
    run_tool(argument_parser(), main)

#!/usr/bin/env python
"""Trains a config with several norms and seeds and compares the results; see --help."""

import argparse
import os
import signal
import sys

from arguments import add_dataset, add_overrides, add_trust, run_tool, tool_parser

EPILOG = """
An entry of --norms is one of
  NORM                          put at every norm of the model: backbone, FPN, and those heads that
                                have convolutions with a norm
  "NAME: KEY VALUE KEY VALUE"   overrides on top of the config, with quotes as in a shell

Every run has its directory OUTPUT/ENTRY/seedK; what it prints is in console.txt there. Runs of one
seed see the same images in the same order. After an interruption the same command resumes: finished
runs stay, the one in progress resumes at its last checkpoint and ends as if it had not been
stopped. More norms or seeds can be added later. At the end the table and the plot of
compare_runs.py are in OUTPUT/comparison.md and OUTPUT/comparison.png. Exit status 1: some runs have
no result.

example:
  compare_norms.py --config-file configs/quickstart/faster_rcnn_R_18_FPN_gn.yaml \\
    --norms BN GN "GW(num_groups=16)" \\
      "S1-B2: MODEL.BACKBONE.NAME build_gw_resnet_fpn_backbone
       MODEL.RESNETS.NORM 'GW(num_groups=16)' MODEL.GW.BASE_NORM GN MODEL.FPN.NORM GN" \\
    --seeds 3 --output output/norms \\
    --dataset cells_train data/train.json data/train --dataset cells_val data/val.json data/val \\
    DATASETS.TRAIN "('cells_train',)" DATASETS.TEST "('cells_val',)"
"""
TRAIN_NET = os.path.join(os.path.dirname(os.path.abspath(__file__)), "train_net.py")


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(
        "Trains a config with several norms, one run after another with the same data order and "
        "schedule, and compares their AP.",
        EPILOG,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a YAML config")
    parser.add_argument(
        "--norms", required=True, nargs="+", metavar="ENTRY", help="what to compare; see below"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="run each with SEED 1 to N (default 1)"
    )
    add_dataset(parser)
    parser.add_argument(
        "--output",
        default=os.path.join("output", "compare_norms"),
        metavar="DIR",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="of each run (default 1)"
    )
    add_trust(parser)
    add_overrides(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.engine.interruption import heeding
    from gw_detectron.runs.comparison import compare

    with heeding(signal.default_int_handler):
        try:
            table = compare(args, TRAIN_NET)
        except KeyboardInterrupt:
            print("\nThe same command resumes where this one was stopped.", file=sys.stderr)
            raise
    print(f"\n{table.markdown()}\nThis table and a plot are in {args.output}: comparison.md, .png")
    if table.problems:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(argument_parser(), main)

#!/usr/bin/env python
"""Trains a config with several norms and seeds and compares the results; see --help."""

import argparse
import os
import signal
import sys

from gw_detectron.engine import add_dataset_argument
from gw_detectron.engine.interruption import heeding
from gw_detectron.errors import ends_with_one_line
from gw_detectron.runs.comparison import prepare

EXAMPLE = """
An entry of --norms is one of
  NORM                          put at every norm of the model: backbone, FPN, and those heads that
                                have convolutions with a norm
  "NAME: KEY VALUE KEY VALUE"   overrides on top of the config, with quotes as in a shell

Every run has its directory OUTPUT/ENTRY/seedK; what it prints is in log.txt there. Runs of one seed
see the same images in the same order. When it is stopped, the same command goes on: finished runs
stay, the one in progress resumes at its last checkpoint and ends as if it had not been stopped.
More norms or seeds can be added later. At the end the table and the plot of compare_runs.py are in
OUTPUT/comparison.md and OUTPUT/comparison.png. Exit status 1: some runs have no result.

example:
  compare_norms.py --config-file configs/quickstart/faster_rcnn_R_18_FPN_gn.yaml \\
    --norms BN GN "GW(num_groups=16)" \\
      "S1-B2: MODEL.BACKBONE.NAME build_gw_resnet_fpn_backbone
       MODEL.RESNETS.NORM 'GW(num_groups=16)' MODEL.GW.BASE_NORM GN MODEL.FPN.NORM GN" \\
    --seeds 3 --output output/norms \\
    --dataset cells_train data/train.json data/train --dataset cells_val data/val.json data/val \\
    DATASETS.TRAIN "('cells_train',)" DATASETS.TEST "('cells_val',)"
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Trains a config with several norms, one run after another with the same data "
        "order and schedule, and compares their AP.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a YAML config")
    parser.add_argument(
        "--norms", required=True, nargs="+", metavar="ENTRY", help="what to compare; see below"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="run each with SEED 1 to N (default 1)"
    )
    add_dataset_argument(parser)
    parser.add_argument(
        "--output",
        default=os.path.join("output", "compare_norms"),
        metavar="DIR",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="of each run (default 1)"
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep all checkpoints of a finished run, not model_final.pth alone",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="overrides of the config for all runs, after the options",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    comparison = prepare(
        config_file=args.config_file,
        norms=args.norms,
        num_seeds=args.seeds,
        output=args.output,
        opts=args.opts,
        datasets=args.dataset,
        num_gpus=args.num_gpus,
        keep_checkpoints=args.keep_checkpoints,
    )
    table = comparison.run()
    print(f"\n{table.markdown()}\nThis table and a plot are in {args.output}: comparison.md, .png")
    return 1 if table.problems else 0


if __name__ == "__main__":
    with ends_with_one_line(), heeding(signal.default_int_handler):
        try:
            sys.exit(main(argument_parser().parse_args()))
        except KeyboardInterrupt:
            print("\nStopped. The same command goes on where this one was.", file=sys.stderr)
            sys.exit(130)

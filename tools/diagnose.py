#!/usr/bin/env python
"""What the norms of trained detectors do to the features; see --help."""

import argparse
import os

from arguments import add_dataset, add_trust, run_tool, tool_parser

EPILOG = """
A detector is a finished training run's directory, or a config with weights. All of them are run on
the same images, and at every norm the covariance between groups of channels is taken before and
after it, for each image (in region heads: each region) on its own. The groups are the same in all
detectors, so that GN and GW can be compared.

Into DIR go diagnosis.csv, the table unrounded, and diagnosis.png, the same by depth.

examples:
  diagnose.py output/norms/GN/seed1 output/norms/GW-num_groups=16/seed1 \\
    --dataset cells_val data/val.json data/val
  diagnose.py --config-file my_config.yaml --weights output/mine/model_final.pth --images 100
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(
        "Measures how well conditioned the features of trained detectors are before and after "
        "every norm.",
        EPILOG,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN_DIR",
        help="an OUTPUT_DIR, or a directory with several",
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="the YAML config of one more detector"
    )
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="its weights (default: its MODEL.WEIGHTS)"
    )
    add_dataset(parser)
    parser.add_argument(
        "--on",
        metavar="NAME",
        help="the dataset with the images, of --dataset's or Detectron2's own (default: that of "
        "--dataset if there is one, else the first in the first detector's DATASETS.TEST)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=32,
        metavar="N",
        help="at most, evenly spread over the dataset (default %(default)s)",
    )
    parser.add_argument(
        "--num-groups",
        type=int,
        metavar="G",
        help="compare by that many groups (default: GW's own, of several numbers the least; 16 "
        "where there is no GW). More than there are channels: every channel on its own",
    )
    parser.add_argument(
        "--output",
        default=os.path.join("output", "diagnosis"),
        metavar="DIR",
        help="default: %(default)s",
    )
    add_trust(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.errors import UsageError
    from gw_detectron.files import make_folder
    from gw_detectron.runs import diagnosis

    detectors = diagnosis.find_detectors(args.runs, args.trust_config)
    if args.config_file:
        detectors.append((args.config_file, args.weights))
    elif args.weights:
        raise UsageError(f"--weights {args.weights}: add their config, --config-file FILE")
    if not detectors:
        raise UsageError("name the detector: RUN_DIR, or --config-file FILE --weights FILE")
    make_folder(args.output, "--output")
    table, heading = diagnosis.diagnose(
        detectors, args.dataset, args.on, args.images, args.num_groups, args.trust_config
    )
    table.to_csv(os.path.join(args.output, "diagnosis.csv"), index=False)
    diagnosis.save_depth_plot(table, os.path.join(args.output, "diagnosis.png"))
    print(f"\n{heading}\n{diagnosis.diagnosis_report(table)}")
    print(f"This is in {args.output}: diagnosis.csv, diagnosis.png")


if __name__ == "__main__":
    run_tool(argument_parser(), main)

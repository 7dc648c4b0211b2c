#!/usr/bin/env python
"""What the norms of trained detectors do to the features; see --help."""

import argparse
import os

from detectron2.config import CfgNode

from gw_detectron import engine
from gw_detectron.config import load_config as load_file
from gw_detectron.errors import UsageError, ends_with_one_line
from gw_detectron.runs.diagnosis import diagnose, find_detectors
from gw_detectron.runs.diagnosis_plot import save_depth_plot
from gw_detectron.runs.diagnosis_report import csv_report, terminal_report

EXAMPLE = """
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
    parser = argparse.ArgumentParser(
        description="Measures how well conditioned the features of trained detectors are before "
        "and after every norm.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN_DIR", help="an OUTPUT_DIR, or a directory with several"
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="the YAML config of one more detector"
    )
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="its weights (default: its MODEL.WEIGHTS)"
    )
    engine.add_dataset_argument(parser)
    parser.add_argument(
        "--on",
        metavar="NAME",
        help="the dataset with the images, of --dataset's or Detectron2's own (default: that of "
        "--dataset if there is one, else the first in the detectors' DATASETS.TEST)",
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
    return parser


def main(args: argparse.Namespace) -> None:
    detectors, left_out = find_detectors(args.runs)
    for line in left_out:
        print(f"left out: {line}")
    for config_file, _ in detectors:  # somebody else's, perhaps
        load_file(config_file)
    if args.config_file:
        detectors.append((args.config_file, args.weights))
    elif args.weights:
        raise UsageError(f"--weights {args.weights}: add their config, --config-file FILE")
    if not detectors:
        raise UsageError("name the detector: RUN_DIR, or --config-file FILE --weights FILE")
    configs = [load_config(args, *files) for files in detectors]
    try:
        os.makedirs(args.output, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {args.output}: {error.strerror}") from error
    findings = diagnose(configs, args.images, args.num_groups)

    table = os.path.join(args.output, "diagnosis.csv")
    with open(table, "w", newline="", encoding="utf-8") as file:
        file.write(csv_report(findings))
    save_depth_plot(findings, os.path.join(args.output, "diagnosis.png"))
    print(f"\n{terminal_report(findings)}\nThis is in {args.output}: diagnosis.csv, diagnosis.png")


def load_config(args: argparse.Namespace, config_file: str, weights: str) -> CfgNode:
    """As for an evaluation of the weights on the dataset."""
    datasets = args.dataset
    name = args.on or (datasets[0][0] if len(datasets) == 1 else None)
    if name:
        datasets = [entry for entry in datasets if entry[0] == name]
    command = ["--config-file", config_file, "--eval-only"]
    for entry in datasets:
        command += ["--dataset", *entry]
    command += ["MODEL.WEIGHTS", weights] if weights else []
    command += ["DATASETS.TEST", f"('{name}',)"] if name else []
    return engine.load_config(engine.argument_parser().parse_args(command))


if __name__ == "__main__":
    with ends_with_one_line():
        main(argument_parser().parse_args())

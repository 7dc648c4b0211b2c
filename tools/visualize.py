#!/usr/bin/env python
"""The detections of runs beside the ground truth, where the runs differ most; see --help."""

import argparse
import os

from gw_detectron.data import register_datasets
from gw_detectron.engine import add_dataset_argument
from gw_detectron.errors import ends_with_one_line
from gw_detectron.runs.page import (
    AP_NAMES,
    common_dataset,
    find_sources,
    load_ground_truth,
    visualize,
)

EXAMPLE = """
A RUN is an OUTPUT_DIR of training, a directory with several, or a file of detections in COCO's
results format; LABEL=RUN gives it a name. A run's results file is used where it is of the dataset;
otherwise its model_final.pth is tested on it, and the detections are kept in DIR.

Into DIR go index.html, one page that opens without a server and can be sent around, and the same
as sheet-01.png, sheet-02.png, ... First come the images on which the box AP of the runs differs
most; with one run, those where it is lowest.

example:
  visualize.py output/norms/GN/seed1 "ours=output/norms/GW-num_groups=16/seed1" \\
    --dataset cells_val data/val.json data/val --output output/compared
  visualize.py detections.json --on coco_2017_val
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draws the detections of one or several runs beside the ground truth, on the "
        "images where the runs differ most.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="see below")
    add_dataset_argument(parser)
    parser.add_argument(
        "--on",
        metavar="NAME",
        help="the dataset to show, of --dataset's or Detectron2's own (default: that of --dataset "
        "if there is one, else the runs' DATASETS.TEST)",
    )
    parser.add_argument(
        "--images", type=int, default=24, metavar="N", help="at most (default %(default)s)"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="draw detections from this score on; the AP counts all (default %(default)s)",
    )
    parser.add_argument(
        "--output",
        default=os.path.join("output", "visualize"),
        metavar="DIR",
        help="default: %(default)s",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    sources, left_out = find_sources(args.runs)
    for line in left_out:
        print(f"left out: {line}")
    datasets = register_datasets(args.dataset)
    name = args.on or (datasets[0].name if len(datasets) == 1 else common_dataset(sources))
    truth = load_ground_truth(name)
    result = visualize(sources, truth, args.output, args.images, args.threshold)
    for run in result.runs:
        aps = ", ".join(f"{AP_NAMES[task]} {ap.dataset:.2f}" for task, ap in run.aps.items())
        print(f"{run.label}: {aps} on {name}, from {run.source}")
    number = f"{len(result.image_ids)} of {len(truth.coco.imgs)} images"
    print(f"{number} are drawn in {result.page}, and in the sheet-*.png beside it")


if __name__ == "__main__":
    with ends_with_one_line():
        main(argument_parser().parse_args())

#!/usr/bin/env python
"""The detections of runs beside the ground truth, where the runs differ most; see --help."""

import argparse
import os
import sys

from arguments import add_dataset, add_trust, run_tool, tool_parser

EPILOG = """
A RUN is an OUTPUT_DIR of training, a directory with several, or a file of detections in COCO's
results format; LABEL=RUN gives it a name. A run's results file is used where it is of the dataset;
otherwise its model_final.pth is tested on it, and the detections are kept in DIR.

Into DIR goes index.html, one page that opens without a server and can be sent around. First come
the images on which the box AP of the runs differs most; with one run, those where it is lowest.

example:
  visualize.py output/norms/GN/seed1 "ours=output/norms/GW-num_groups=16/seed1" \\
    --dataset cells_val data/val.json data/val --output output/compared
  visualize.py detections.json --on coco_2017_val
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(
        "Draws the detections of one or several runs beside the ground truth, on the images where "
        "the runs differ most.",
        EPILOG,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="see below")
    add_dataset(parser)
    add_trust(parser)
    parser.add_argument(
        "--on",
        metavar="NAME",
        help="the dataset to show, of --dataset's or Detectron2's own (default: that of --dataset "
        "if there is one, else the last of the runs' DATASETS.TEST)",
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
        "--output", default="output/visualize", metavar="DIR", help="default: %(default)s"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.data import register_datasets
    from gw_detectron.files import make_folder
    from gw_detectron.runs.detections import (
        common_dataset,
        find_detections,
        find_sources,
        load_ground_truth,
    )
    from gw_detectron.runs.page import save_page

    sources = find_sources(args.runs, args.trust_config)
    datasets = register_datasets(args.dataset)
    for dataset in datasets:
        print(dataset.report, file=sys.stderr)
    name = args.on or (datasets[0].name if len(datasets) == 1 else common_dataset(sources))
    truth = load_ground_truth(name)
    make_folder(args.output, "--output")
    runs = find_detections(sources, truth, args.output, args.trust_config)
    page = os.path.join(args.output, "index.html")
    save_page(page, runs, args.images, args.threshold)
    for run in runs:
        print(run.summary)
    total = len(truth.coco.imgs)
    print(f"{min(args.images, total)} of {total} images are drawn in {page}")


if __name__ == "__main__":
    run_tool(argument_parser(), main)

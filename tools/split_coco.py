#!/usr/bin/env python
"""Splits a COCO file by its images; see --help."""

import argparse

from arguments import run_tool, tool_parser

EPILOG = """
Each image of FILE goes, with its annotations, to DIR/train.json or to DIR/val.json. Use it on data
that come in one file, or to choose settings without the images on which results are reported: split
the training images, and compare the settings on DIR/val.json.

example:
  split_coco.py data/train.json --fraction 0.2 --output data/split
  train_net.py --config-file configs/quickstart/faster_rcnn_R_18_FPN_gw.yaml \\
    --dataset my_train data/split/train.json data/images \\
    --dataset my_val data/split/val.json data/images \\
    DATASETS.TRAIN "('my_train',)" DATASETS.TEST "('my_val',)"
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser("Splits a COCO file at random, image by image.", EPILOG)
    parser.add_argument("file", metavar="FILE", help="annotations in COCO format")
    parser.add_argument(
        "--fraction",
        type=float,
        default=0.2,
        metavar="F",
        help="of the images that go to val.json (default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="another one draws other images (default %(default)s)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder that is made")
    return parser


def main(args: argparse.Namespace) -> None:
    import json

    from gw_detectron.data.split import split
    from gw_detectron.data.values import mistakes_of, read_json
    from gw_detectron.files import whole_folder

    content = read_json(args.file)
    with mistakes_of(args.file):
        parts = split(content, args.fraction, args.seed)
    with whole_folder(args.output) as folder:
        for name, part in zip(("train.json", "val.json"), parts, strict=True):
            (folder / name).write_text(json.dumps(part), encoding="utf-8")
            numbers = [f"{len(part[what])} {what}" for what in ("images", "annotations")]
            print(f"{args.output}/{name}: {', '.join(numbers)}")


if __name__ == "__main__":
    run_tool(argument_parser(), main)

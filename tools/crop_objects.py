#!/usr/bin/env python
"""Cuts the objects of detection data into a classification set; see --help."""

import argparse

from arguments import add_dataset, run_tool, tool_parser

EPILOG = """
The folder is what pretrain_imagenet.py takes as --data: DIR/train/<class>/ and DIR/val/<class>/,
an image around every object. For a backbone where there is no ImageNet.

example:
  crop_objects.py --train gw_shapes_train --val gw_shapes_val --output datasets/shapes_crops
  pretrain_imagenet.py --config-file configs/ImageNet-Classification/R_18_gw.yaml \\
    --data datasets/shapes_crops SOLVER.IMS_PER_BATCH 64 SOLVER.BASE_LR 0.05 \\
    PRETRAINING.EPOCHS 10 PRETRAINING.STEPS "(6, 9)" PRETRAINING.SIZE_TRAIN 64 \\
    PRETRAINING.RESIZE_TEST 64 PRETRAINING.SIZE_TEST 64 OUTPUT_DIR output/R-18-GW
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(
        "Cuts the objects of detection data into a classification set, on which backbones can be "
        "pre-trained.",
        EPILOG,
    )
    for split in ("train", "val"):
        parser.add_argument(
            f"--{split}",
            nargs="+",
            required=True,
            metavar="NAME",
            help=f"datasets, of --dataset's or Detectron2's own, for the folder {split}",
        )
    add_dataset(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder that is made")
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.data import register_datasets
    from gw_detectron.data.crops import crop_objects
    from gw_detectron.files import whole_folder

    for dataset in register_datasets(args.dataset):
        print(dataset.report)
    with whole_folder(args.output) as folder:
        for split, names in (("train", args.train), ("val", args.val)):
            counts = crop_objects(names, folder / split)
            classes = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
            print(f"{split}: {counts.total()} images: {classes}")
    print(f"The classification set is in {args.output}")


if __name__ == "__main__":
    run_tool(argument_parser(), main)

#!/usr/bin/env python
"""What a config's norms take from the features, whiten and cost; see --help."""

import argparse

from arguments import add_overrides, add_trust, run_tool, tool_parser

EPILOG = """
A norm imposes constraints on a sample (an image; in a region head a region): GN 2 g, GW
g (g + 3) / 2 equations for g groups. More of them than the sample has values leave it no freedom.

columns:
  C, size      channels and spatial size (1: none, a fully connected layer's). In region heads "512
               of 7x7": so many regions of an image. Of a layer that runs several times, as one that
               RetinaNet's levels share, the smallest size, where it is tightest: "1 of 5: 7x11"
  g, T         groups, and Newton's iterations of GW
  m            values a group; for BN values a channel, of one image
  constraints  on a sample; BN's, 2 C, on all samples of one image; FrozenBN imposes none
  share        constraints / values, the share of freedom that they take
  limit        the largest number of groups with no more constraints than values
  max g        the largest within it that divides C
  +GFLOPs      GW's forward pass beyond GN's, an image in training: 2 g C S + 3 (T - 1) g^3
               multiply-adds a sample of S positions
  +MB          kept for GW's backward pass beyond GN's: 8 g^2 - 4 g bytes a sample
  1/10 ...     the variance that T iterations leave missing in a direction that holds 1/10, 1/g,
               1/(10 g) of the whole. White input has 1/g in every direction
  verdict      fine: share up to 25%; tight: up to 100%; over the limit. The paper's tightest layer
               has 17%
  suggestion   g: the largest that divides C, is not above the layer's and fine. T: the smallest,
               not below the layer's, that leaves at most 10% of white input's variance missing

Region heads are counted as in training: ROI_HEADS.BATCH_SIZE_PER_IMAGE regions an image, in mask
and keypoint heads the POSITIVE_FRACTION of them.

examples:
  analyze_config.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_4conv1fc_1x_gw.yaml
  analyze_config.py --config-file my_config.yaml --size 320 480 --csv norms.csv \\
    MODEL.RESNETS.NORM "GW(num_groups=16)"
  analyze_config.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_2fc_1x_gw.py \\
    model.backbone.norm=GW
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(
        "Lists the norms of a config's model: how much freedom they take from the features, how "
        "far GW whitens, and what it costs.",
        EPILOG,
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a YAML config or a LazyConfig"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="of the image that the model is given; the smallest that it will see is the tightest. "
        "Default: a wide image at INPUT.MIN_SIZE_TEST, for a LazyConfig 800 1333",
    )
    parser.add_argument("--csv", metavar="FILE", help="write the table there, unrounded")
    add_trust(parser)
    add_overrides(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.errors import UsageError
    from gw_detectron.norms.analysis import analysis_report, analyze, build_from_config, save_csv

    if args.size and min(args.size) < 1:
        raise UsageError(f"--size {args.size[0]} {args.size[1]}: both are at least 1")
    model, size = build_from_config(args.config_file, args.opts, args.trust_config)
    height, width = args.size or size
    rows, flops = analyze(model, height, width)
    print(f"{args.config_file}, an image of {height} x {width}; columns: see --help\n")
    print(analysis_report(rows, flops))
    if args.csv:
        save_csv(rows, args.csv)


if __name__ == "__main__":
    run_tool(argument_parser(), main)

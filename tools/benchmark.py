#!/usr/bin/env python
"""What GW costs in time and memory beside other norms; see --help."""

import argparse
import os
import shlex
import sys

from gw_detectron.benchmark import DTYPES, NORMS, Machine, measure_layers, measure_models
from gw_detectron.errors import ends_with_one_line
from gw_detectron.model_zoo import get_config_file

# What layers measures unless told otherwise: GW in every part of Mask R-CNN that takes a norm
LAYERS_CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gw.yaml"
LAYERS_OPTS = (
    "MODEL.ROI_BOX_HEAD.NUM_CONV", "4", "MODEL.ROI_BOX_HEAD.NUM_FC", "1",
    "MODEL.ROI_BOX_HEAD.NORM", "GW",
)  # fmt: skip

LAYERS = """
Measures GW and other norms on every distinct input that a GW layer has in a training step of the
config's model; by default Mask R-CNN R-50-FPN with the 4conv1fc box head, GW in backbone, FPN and
heads.

  GW        this package's layer
  textbook  the same in plain autograd, formula by formula, as the authors' module computes it
  compiled  torch.compile of the textbook's
  GN        nn.GroupNorm
  FrozenBN  Detectron2's FrozenBatchNorm2d

example:
  benchmark.py layers --norms GN GW textbook
"""
MODEL = """
Measures Detectron2's training step (forward, backward, optimizer) and inference of several models
on the same random images: of several configs, or of one config with several norms. The weights are
random; regions and masks are as many as in training, detections as many as the config allows.

An entry of --norms is one of
  NORM                          put at every norm of the model
  "NAME: KEY VALUE KEY VALUE"   overrides on top of the config, with quotes as in a shell

example:
  benchmark.py model --norms GN GW --textbook \\
    --config-file configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gn.yaml
"""
OUTPUT = """
All take turns in every round, each round beginning with another one. A cell has the median, ± the
interquartile range in percent of it, and the ratio to the first norm or model, "x". The threads on
a CPU are OMP_NUM_THREADS. The output directory gets the tables in benchmark.md, the ratios drawn in
benchmark.png, and every round in benchmark.json; after Ctrl-C, what was measured until then.
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measures what GW costs in time and memory beside other norms."
    )
    levels = parser.add_subparsers(dest="level", required=True, metavar="layers|model")

    layers = _add_level(levels, "layers", "single layers, at every input that a model has", LAYERS)
    layers.add_argument("--config-file", metavar="FILE", help="a YAML config of a model with GW")
    layers.add_argument(
        "--norms",
        nargs="+",
        choices=NORMS,
        default=list(NORMS),
        metavar="NORM",
        help=f"the first is what the others are compared with (default: {' '.join(NORMS)})",
    )
    _add_common(layers, "layers")

    model = _add_level(levels, "model", "training steps and inferences of whole models", MODEL)
    model.add_argument(
        "--config-file", required=True, nargs="+", metavar="FILE", help="YAML configs"
    )
    model.add_argument("--norms", nargs="+", default=(), metavar="ENTRY", help="see above")
    model.add_argument(
        "--textbook",
        action="store_true",
        help="beside each model with GW, also the same with GW in plain autograd, formula by "
        "formula, as the authors' module computes it",
    )
    _add_common(model, "model")
    return parser


def _add_level(
    levels: argparse._SubParsersAction, name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    return levels.add_parser(
        name,
        help=summary,
        description=description,
        epilog=OUTPUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_common(parser: argparse.ArgumentParser, level: str) -> None:
    parser.add_argument(
        "--size",
        type=_positive,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images (default: the config's for tests, 800 1333 in the usual ones)",
    )
    parser.add_argument(
        "--images", type=_positive, default=1, metavar="N", help="in a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="default: %(default)s. tf32 is float32 with TF32 in matrix products; a half type is "
        "that of a layer's input and parameters, or of a model's mixed precision",
    )
    parser.add_argument("--channels-last", action="store_true", help="memory format of the maps")
    parser.add_argument(
        "--rounds", type=_positive, default=20, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--output",
        default=os.path.join("output", "benchmark", level),
        metavar="DIR",
        help="default: %(default)s",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="overrides of the config, after the options",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _command() -> str:
    """With the variable that chooses what computes GW."""
    backend = os.environ.get("GW_BACKEND")
    variable = f"GW_BACKEND={backend} " if backend else ""
    return variable + shlex.join(["tools/benchmark.py", *sys.argv[1:]])


def main(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    machine = Machine.prepare(args.device, args.dtype, args.channels_last)
    common = {
        "machine": machine,
        "norms": args.norms,
        "size": args.size and tuple(args.size),
        "num_images": args.images,
        "rounds": args.rounds,
    }
    if args.level == "layers":
        opts = args.opts if args.config_file else [*LAYERS_OPTS, *args.opts]
        file = args.config_file or get_config_file(LAYERS_CONFIG)
        results = measure_layers(config_file=file, opts=opts, **common)
    else:
        results = measure_models(
            config_files=args.config_file, opts=args.opts, with_textbook=args.textbook, **common
        )
    results.about["command"] = f"`{_command()}`"
    if not results.costs:
        print("Stopped before anything was measured.", file=sys.stderr)
        return 130
    output = args.output or os.path.join("output", "benchmark", args.level)
    results.save(output)
    print(
        f"\n{results.markdown()}\nThese tables are in {output}, with a picture: benchmark.md, .png"
    )
    return 130 if results.stopped else 0


if __name__ == "__main__":
    with ends_with_one_line():
        sys.exit(main(argument_parser().parse_args()))

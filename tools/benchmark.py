#!/usr/bin/env python
"""What GW costs in time and memory beside other norms; see --help."""

import argparse
import math
import os
import shlex
import sys
import time

from arguments import add_overrides, add_trust, run_tool, tool_parser

NORMS = ("GW", "GW Triton", "GW PyTorch", "textbook", "compiled", "GN", "FrozenBN")
DTYPES = ("float32", "tf32", "float16", "bfloat16")
PARTS = (
    "layers-bfloat16",
    "models-amp",
    "layers-tf32",
    "models-tf32",
    "layers-float32",
    "compiled",
    "models-float32",
)

LAYERS = """
Measures norms on every distinct input that a GW layer has in a training step of the config's model;
by default Mask R-CNN R-50-FPN with the 4conv1fc box head, GW in backbone, FPN and heads.

  GW          this package's layer
  GW Triton   the same by Triton's kernels
  GW PyTorch  the same by PyTorch's operators
  textbook    the same in plain autograd, formula by formula, as the authors' module computes it
  compiled    torch.compile of the textbook's
  GN          nn.GroupNorm
  FrozenBN    Detectron2's FrozenBatchNorm2d

example:
  benchmark.py layers --norms GN GW textbook
"""
MODEL = """
Measures Detectron2's training step (forward, backward, optimizer) and inference of a config with
several norms on the same random images. The weights are random; regions and masks are as many as in
training, detections as many as the config allows. INPUT.MIN_SIZE_TEST is the images' height.

An entry of --norms is one of
  NORM                          put at every norm of the model
  "NAME: KEY VALUE KEY VALUE"   overrides on top of the config, with quotes as in a shell

example:
  benchmark.py model --norms GN GW --textbook \\
    --config-file configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_gn.yaml
"""
GPU = f"""
Measures all that docs/performance.md has of a GPU in several parts, what matters most first:

  {" ".join(PARTS)}

Layers are those of Mask R-CNN R-50-FPN with the 4conv1fc box head, for one image. GW is measured by
Triton's kernels and by PyTorch's operators, in calls from Python and on the GPU alone, in a CUDA
graph. Models are Mask R-CNN R-50-FPN with two images: FrozenBN, GN, GW at S1-B2, GW everywhere.

example:
  benchmark.py gpu --parts layers-bfloat16 models-amp
"""
OUTPUT = """
All take turns in every round, each round beginning with another one. A cell has the median, ± the
interquartile range in percent of it, and the ratio to the first norm or model, "x". What fails is
noted and left out. The threads on a CPU are OMP_NUM_THREADS. The output directory gets the tables
in benchmark.md, the ratios drawn in benchmark.png, and every round in benchmark.json; after Ctrl-C,
what was measured until then.
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser("Measures what GW costs in time and memory beside other norms.")
    levels = parser.add_subparsers(dest="level", required=True, metavar="layers|model|gpu")

    layers = _add_level(levels, "layers", "single layers, at every input that a model has", LAYERS)
    layers.add_argument("--config-file", metavar="FILE", help="a YAML config of a model with GW")
    layers.add_argument(
        "--norms",
        nargs="+",
        choices=NORMS,
        default=["GW", "textbook", "compiled", "GN", "FrozenBN"],
        metavar="NORM",
        help="the first is what the others are compared with (default: %(default)s)",
    )

    model = _add_level(levels, "model", "training steps and inferences of whole models", MODEL)
    model.add_argument("--config-file", required=True, metavar="FILE", help="a YAML config")
    model.add_argument(
        "--norms", nargs="+", default=(), metavar="ENTRY", help="default: the config as it is"
    )
    model.add_argument(
        "--textbook", action="store_true", help="measure each model with GW also with the textbook"
    )

    for level in (layers, model):
        level.set_defaults(seconds=math.inf)
        level.add_argument(
            "--images", type=_positive, default=1, metavar="N", help="default: %(default)s"
        )
        level.add_argument(
            "--dtype",
            choices=DTYPES,
            default="float32",
            help="tf32 is float32 with TF32 in products; a half type is that of a layer's input "
            "and parameters, or of a model's mixed precision (default: %(default)s)",
        )

    gpu = _add_level(levels, "gpu", "everything, in few minutes", GPU)
    gpu.set_defaults(device="cuda", rounds=6, output="output/benchmark-gpu")
    gpu.set_defaults(config_file=None, images=1, dtype="float32")
    gpu.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="default: all"
    )
    gpu.add_argument(
        "--seconds",
        type=_positive,
        default=235,
        metavar="N",
        help="after which no other input, round or part is begun (default: %(default)s)",
    )
    return parser


def _add_level(
    levels: argparse._SubParsersAction, name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    """With the arguments that all levels have."""
    parser = levels.add_parser(
        name,
        help=summary,
        description=description,
        epilog=OUTPUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    parser.add_argument(
        "--rounds", type=_positive, default=20, metavar="N", help="default: %(default)s"
    )
    output = f"output/benchmark/{name}"
    parser.add_argument("--output", default=output, metavar="DIR", help="default: %(default)s")
    add_trust(parser)
    add_overrides(parser)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def main(args: argparse.Namespace) -> None:
    """Saves the results whenever there are more, and prints them at the end."""
    import torch

    from gw_detectron.benchmark import measure, results, workload
    from gw_detectron.model_zoo import get_config_file

    of_paper = args.level == "layers" and not args.config_file
    setup = workload.Setup(
        config_file=args.config_file or get_config_file(measure.LAYERS_CONFIG),
        opts=[*measure.LAYERS_OPTS, *args.opts] if of_paper else args.opts,
        trust=args.trust_config,
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=args.dtype,
        num_images=args.images,
        rounds=args.rounds,
        deadline=time.monotonic() + args.seconds,
    )
    if args.level == "gpu":
        steps = measure.measure_parts(setup, args.parts)
    elif args.level == "layers":
        inputs = workload.find_inputs(setup)
        steps = ({"Layers": of} for of in measure.measure_layers(setup, inputs, args.norms))
    else:
        of_models = measure.measure_models(setup, args.norms, args.textbook)
        steps = ({"Whole models": of} for of in of_models)
    backend = os.environ.get("GW_BACKEND")
    variable = f"GW_BACKEND={backend} " if backend else ""
    command = variable + shlex.join(["tools/benchmark.py", *sys.argv[1:]])
    parts = {}
    try:
        for parts in steps:
            results.save(args.output, command, parts)
    finally:
        results.save_picture(args.output, parts)
    print(
        f"\n{results.markdown(command, parts)}\nThese tables are in {args.output}, with a picture"
    )
    if not any(part.measured() for part in parts.values()):
        sys.exit("nothing could be measured")


if __name__ == "__main__":
    run_tool(argument_parser(), main)

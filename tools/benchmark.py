#!/usr/bin/env python
"""What GW costs in time and memory beside other norms; see --help."""

import argparse
import math
import os
import shlex
import sys

from arguments import add_overrides, add_trust, run_tool, tool_parser

NORMS = ("GW", "GW Triton", "GW PyTorch", "textbook", "compiled", "GN", "FrozenBN")
DTYPES = ("float32", "tf32", "float16", "bfloat16")

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
GPU = """
Measures all that docs/performance.md has of a GPU, what matters most first: layers in bfloat16,
models in mixed precision, both in TF32, both in float32. Layers are those that `layers` measures by
default, models Mask R-CNN R-50-FPN with two images and FrozenBN, GN, GW at S1-B2, GW everywhere.
GW is measured by Triton's kernels and by PyTorch's operators.
"""
OUTPUT = """
All take turns in every round, each round beginning with another one. A cell has the median, ± the
interquartile range in percent of it, and the ratio to the first norm or model, "x". What fails is
noted and left out. The threads on a CPU are OMP_NUM_THREADS. The output directory gets the tables
in benchmark.md and every round in benchmark.csv, both written as the results come. Without a GPU,
or with MODEL.DEVICE cpu, the CPU is measured.
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
        default=["GW", "textbook", "GN", "FrozenBN"],
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
            "--images", type=int, default=1, metavar="N", help="default: %(default)s"
        )
        level.add_argument(
            "--dtype",
            choices=DTYPES,
            default="float32",
            help="tf32 is float32 with TF32 in products; a half type is that of a layer's input "
            "and parameters, or of a model's mixed precision (default: %(default)s)",
        )
        add_trust(level)

    gpu = _add_level(levels, "gpu", "everything, in few minutes", GPU)
    gpu.set_defaults(rounds=6)
    gpu.add_argument(
        "--seconds",
        type=int,
        default=235,
        metavar="N",
        help="after which it ends with what it has measured (default: %(default)s)",
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
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="default: %(default)s")
    output = f"output/benchmark-{name}"
    parser.add_argument("--output", default=output, metavar="DIR", help="default: %(default)s")
    add_overrides(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    import torch

    from gw_detectron.benchmark import measure, results, workload
    from gw_detectron.errors import UsageError

    if args.level == "gpu":
        if not torch.cuda.is_available():
            raise UsageError("this machine has no GPU that PyTorch can use")
        rows = measure.measure_gpu(args.opts, args.rounds)
    else:
        opts = args.opts if args.config_file else [*measure.GW_IN_BOX_HEAD, *args.opts]
        cfg = workload.benchmark_config(
            args.config_file or measure.MASK_RCNN, opts, args.trust_config
        )
        if args.level == "layers":
            inputs = workload.find_inputs(cfg, args.images)
            rows = measure.measure_layers(
                inputs, args.norms, cfg.MODEL.DEVICE, args.dtype, args.rounds
            )
        else:
            ways = ("GW", "textbook") if args.textbook else ("GW",)
            rows = measure.measure_models(
                cfg, args.norms, args.dtype, args.images, args.rounds, ways
            )
    variables = [f"GW_BACKEND={os.environ['GW_BACKEND']}"] if "GW_BACKEND" in os.environ else []
    command = shlex.join([*variables, "tools/benchmark.py", *sys.argv[1:]])
    print("\n" + results.collect(rows, command, args.output, args.seconds))
    print(f"These tables are in {args.output}")


if __name__ == "__main__":
    run_tool(argument_parser(), main)

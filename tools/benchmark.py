#!/usr/bin/env python
"""What GW costs in time and memory beside other norms; see --help."""

import argparse
import os
import shlex
import sys

from gw_detectron.benchmark import (
    DTYPES,
    LAYERS_CONFIG,
    LAYERS_OPTS,
    NORMS,
    PARTS,
    Machine,
    Results,
    measure_layers,
    measure_models,
    measure_parts,
)
from gw_detectron.errors import ends_with_one_line
from gw_detectron.model_zoo import get_config_file

LAYERS_NORMS = ("GW", "textbook", "compiled", "GN", "FrozenBN")

LAYERS = """
Measures GW and other norms on every distinct input that a GW layer has in a training step of the
config's model; by default Mask R-CNN R-50-FPN with the 4conv1fc box head, GW in backbone, FPN and
heads.

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
GPU = """
Measures all that docs/performance.md has of a GPU, what matters most first, in four minutes on an
H100; each part is saved as it ends:

{parts}

Layers are those of Mask R-CNN R-50-FPN with the 4conv1fc box head, for one image. GW is measured by
Triton's kernels and by PyTorch's operators, in calls from Python and, "GPU alone", in a CUDA graph.
Models are Mask R-CNN R-50-FPN with two images: FrozenBN, GN, GW at S1-B2, GW everywhere. What fails
is noted.

example:
  benchmark.py gpu --parts layers-bfloat16 models-amp
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
    levels = parser.add_subparsers(dest="level", required=True, metavar="layers|model|gpu")

    layers = _add_level(levels, "layers", "single layers, at every input that a model has", LAYERS)
    layers.add_argument("--config-file", metavar="FILE", help="a YAML config of a model with GW")
    layers.add_argument(
        "--norms",
        nargs="+",
        choices=NORMS,
        default=LAYERS_NORMS,
        metavar="NORM",
        help=f"the first is what the others are compared with (default: {' '.join(LAYERS_NORMS)})",
    )
    _add_work(layers)
    _add_common(layers, os.path.join("benchmark", "layers"), rounds=20)

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
    _add_work(model)
    _add_common(model, os.path.join("benchmark", "model"), rounds=20)

    titles = "\n".join(f"  {name:<15}  {part.title}" for name, part in PARTS.items())
    gpu = _add_level(levels, "gpu", "everything, in few minutes", GPU.format(parts=titles))
    gpu.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help="in this order (default: all)",
    )
    gpu.add_argument(
        "--seconds",
        type=_positive,
        default=235,
        metavar="N",
        help="after which no other part is begun (default: %(default)s)",
    )
    _add_common(gpu, "benchmark-gpu", rounds=6)
    gpu.set_defaults(device="cuda")
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


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=_positive, default=1, metavar="N", help="in a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="default: %(default)s. tf32 is float32 with TF32 in matrix products; a half type is "
        "that of a layer's input and parameters, or of a model's mixed precision",
    )
    parser.add_argument("--channels-last", action="store_true", help="memory format of the maps")


def _add_common(parser: argparse.ArgumentParser, output: str, rounds: int) -> None:
    parser.add_argument(
        "--size",
        type=_positive,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images (default: the config's for tests, 800 1333 in the usual ones)",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU"
    )
    parser.add_argument(
        "--rounds", type=_positive, default=rounds, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--output",
        default=os.path.join("output", output),
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
    if args.level == "gpu":
        return _measure_parts(args)
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
        why = [] if results.stopped else results.remarks()
        print("\n".join(why) or "Stopped before anything was measured.", file=sys.stderr)
        return 130 if results.stopped else 1
    results.save(args.output)
    _print(results, args.output)
    return 130 if results.stopped else 0


def _measure_parts(args: argparse.Namespace) -> int:
    """Saves the results after each part."""
    size = args.size and tuple(args.size)
    for results in measure_parts(
        args.parts, args.device, size, args.rounds, args.seconds, args.opts
    ):
        results.about["command"] = f"`{_command()}`"
        results.save(args.output)
    _print(results, args.output)
    if results.stopped:
        return 130
    return 0 if results.parts else 1


def _print(results: Results, output: str) -> None:
    print(
        f"\n{results.markdown()}\nThese tables are in {output}, with a picture: benchmark.md, .png"
    )


if __name__ == "__main__":
    with ends_with_one_line():
        sys.exit(main(argument_parser().parse_args()))

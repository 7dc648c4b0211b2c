"""
The arguments that several tools have, and how a tool runs.

Nothing here imports PyTorch or Detectron2, and tools import the package in their main alone: --help
and a mistake in the arguments are told at once.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any


def tool_parser(description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose epilog stays as it is written."""
    return argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def training_parser(description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with the arguments of Detectron2's default_argument_parser, and --trust-config."""
    parser = tool_parser(description, epilog)
    parser.add_argument("--config-file", default="", metavar="FILE", help="a YAML config")
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in OUTPUT_DIR where there is one"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS only")
    parser.add_argument("--num-gpus", type=int, default=1, help="the GPUs of each machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="the rank of this machine")
    # A port of the user's own: that of a run whose processes are still there is in use
    port = 2**15 + 2**14 + hash(os.getuid()) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where the processes of a run meet (default %(default)s)",
    )
    add_trust(parser)
    add_overrides(parser)
    return parser


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Adds --dataset NAME ANNOTATIONS.json IMAGE_DIR, what `data.register_datasets` takes."""
    parser.add_argument(
        "--dataset",
        action="append",
        nargs=3,
        default=[],
        metavar=("NAME", "ANNOTATIONS.json", "IMAGE_DIR"),
        help="register COCO-format data as NAME, to be used in DATASETS.TRAIN or DATASETS.TEST; "
        "NUM_CLASSES is set from it unless the config states it. Repeatable",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds --trust-config, see `config.read_config_file`."""
    parser.add_argument(
        "--trust-config",
        action="store_true",
        help="accept YAML tags, which can run code, in any config file; without it they are "
        "accepted in Detectron2's and this package's own",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds what remains of the command line as `opts`."""
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )


def run_tool(parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], Any]) -> None:
    """Runs main; a user's mistake ends it with one line and status 2."""
    args = parser.parse_args()
    from gw_detectron.errors import ends_with_one_line

    with ends_with_one_line():
        main(args)

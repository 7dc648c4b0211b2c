#!/usr/bin/env python
"""Training runs side by side in a table, and on request in a plot; see --help."""

import argparse
import sys

from arguments import add_dataset, add_trust, run_tool, tool_parser

EPILOG = """
Runs that differ only in the SEED are one line, their AP a mean ± the standard deviation. The lines
of a config are told apart by their norms, and by the learning rate, since each norm has a best one
of its own. Where a run is a row of the paper's COCO tables, the paper's AP stands beside.

Below are the differences between every two lines of a config, with two 95 % intervals: over the
seeds (Student's, of runs with the same SEED) and over the images (a bootstrap of the same runs,
where their detections and the dataset are there). If an interval holds 0, the difference is called
none. Runs that are unfinished or failed are named at the end.

examples:
  compare_runs.py output/norms --dataset my_val data/val.json data/images
  compare_runs.py output/faster_frozenbn output/faster_gw --plot output/faster.png
  compare_runs.py output --csv > output/runs.csv
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(
        "Compares the results of Detectron2 training runs in a Markdown table.", EPILOG
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", help="an OUTPUT_DIR, or a directory with several"
    )
    parser.add_argument("--csv", action="store_true", help="print CSV instead of Markdown")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw AP and training loss against iterations"
    )
    add_dataset(parser)
    add_trust(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from gw_detectron.data import register_datasets
    from gw_detectron.errors import UsageError
    from gw_detectron.runs.plot import save_plot
    from gw_detectron.runs.run import find_runs
    from gw_detectron.runs.table import make_table

    register_datasets(args.dataset)
    table = make_table(find_runs(args.runs, args.trust_config))
    if args.csv:
        print(table.csv(), end="")
        for path, why in table.problems:
            print(f"not in the table: {path}: {why}", file=sys.stderr)
    else:
        print(table.markdown(), end="")
    if args.plot and not table.lines:
        raise UsageError(f"--plot {args.plot}: no run has a result, so there is nothing to draw")
    if args.plot:
        save_plot(table.lines, args.plot)


if __name__ == "__main__":
    run_tool(argument_parser(), main)

#!/usr/bin/env python
"""Trains or evaluates a detector; see --help and gw_detectron/engine."""

from gw_detectron.engine import argument_parser, load_config, main, run
from gw_detectron.errors import ends_with_one_line

if __name__ == "__main__":
    with ends_with_one_line():
        run(main, load_config, argument_parser().parse_args())

#!/usr/bin/env python
"""Trains a backbone as an image classifier; see --help and gw_detectron/pretraining."""

from gw_detectron.engine import run
from gw_detectron.errors import ends_with_one_line
from gw_detectron.pretraining import argument_parser, load_config, main

if __name__ == "__main__":
    with ends_with_one_line():
        run(main, load_config, argument_parser().parse_args())

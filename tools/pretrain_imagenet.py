#!/usr/bin/env python
"""Trains a backbone as an image classifier; see --help and gw_detectron/engine/pretraining."""

from gw_detectron.engine import run
from gw_detectron.engine.pretraining import argument_parser, load_config, main
from gw_detectron.errors import ends_with_one_line

if __name__ == "__main__":
    with ends_with_one_line():
        run(main, load_config, argument_parser().parse_args())

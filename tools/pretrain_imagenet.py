#!/usr/bin/env python
"""Trains a backbone as an image classifier; see --help and gw_detectron/pretraining."""

import sys

from gw_detectron.engine import run
from gw_detectron.errors import UsageError
from gw_detectron.pretraining import argument_parser, load_config, main

if __name__ == "__main__":
    try:
        run(main, load_config, argument_parser().parse_args())
    except UsageError as error:
        print(f"pretrain_imagenet.py: error: {error}", file=sys.stderr)
        sys.exit(2)

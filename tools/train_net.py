#!/usr/bin/env python
"""Trains or evaluates a detector; see --help and gw_detectron/engine.py."""

import sys

from gw_detectron.engine import argument_parser, load_config, main, run
from gw_detectron.errors import UsageError

if __name__ == "__main__":
    try:
        run(main, load_config, argument_parser().parse_args())
    except UsageError as error:
        print(f"train_net.py: error: {error}", file=sys.stderr)
        sys.exit(2)

"""What runs in the process that training.py starts: tools/train_net.py's work, while wanted."""

import os
import sys
import threading

from ..engine import argument_parser, load_config, main, run
from ..errors import UsageError


def end_with_parent() -> None:
    """Standard input is a pipe that nothing is written to: it ends when the parent does."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock would be held in worker processes that are forked
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    try:
        run(main, load_config, argument_parser().parse_args())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)

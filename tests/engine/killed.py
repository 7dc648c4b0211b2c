"""
`python -m tests.engine.killed KILLS ARGUMENTS...` trains as tools/train_net.py does with the
ARGUMENTS, killed KILLS times and started again. It imports everything once and forks, which saves
most of the time.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from gw_detectron.engine import main  # noqa: E402
from train_net import argument_parser  # noqa: E402


def train(args, folder: Path, kill_while_saving: bool) -> None:
    """Trains until there is one more checkpoint, to be killed then or in the next half second."""
    finished = number_of_checkpoints(folder)
    pid = os.fork()
    if pid == 0:
        main(args)
        os._exit(0)
    wait_until(lambda: number_of_checkpoints(folder) > finished, pid)
    if kill_while_saving:
        wait_until(lambda: list(folder.glob("model_*.unfinished")), pid)
    else:
        time.sleep(random.random() / 2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def number_of_checkpoints(folder: Path) -> int:
    return len(list(folder.glob("model_*.pth")))


def wait_until(condition, pid: int) -> None:
    while not condition():
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            sys.exit("training ended before it was killed")
        time.sleep(0.005)


if __name__ == "__main__":
    args = argument_parser().parse_args(sys.argv[2:])
    folder = Path(args.opts[args.opts.index("OUTPUT_DIR") + 1])
    for kill in range(int(sys.argv[1])):
        train(args, folder, kill_while_saving=kill % 2 == 0)
        print(f"killed beside {number_of_checkpoints(folder)} checkpoints, "
              f"{len(list(folder.glob('*.unfinished')))} unfinished",
              flush=True)  # fmt: skip  # or the next child would print it again
    main(args)

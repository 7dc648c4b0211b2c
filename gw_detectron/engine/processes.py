"""A tool's work in one process, in one a GPU, or in those that torchrun has started."""

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing import ProcessRaisedException

from ..errors import UsageError
from .interruption import heeding


@heeding(signal.default_int_handler)
def run(
    main: Callable[[argparse.Namespace], Any],
    setup: Callable[[argparse.Namespace], CfgNode],
    args: argparse.Namespace,
) -> None:
    """
    Runs main(args) in this process, or in args.num_gpus processes of every machine; what torchrun
    has started runs it together.

    Args:
        setup: what finds the mistakes in args. It is called first where there will be several
            processes, since one that stops alone leaves the others waiting for it.

    Raises:
        UsageError: of whichever process, on a mistake in what args name.
        KeyboardInterrupt: this process was asked to end; the others have ended before.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= os.environ.keys():
        return _join(main, args)
    _check(args)
    if args.num_gpus * args.num_machines > 1:
        setup(args)
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():  # each saves a checkpoint and ends
            child.terminate()
            child.join()
        raise
    except ProcessRaisedException as error:  # a process of launch's tells by its traceback only
        if f"{UsageError.__module__}.UsageError: " in str(error):
            raise UsageError(str(error)) from error
        if "EADDRINUSE" in str(error):
            raise UsageError(
                f"--dist-url {args.dist_url}: the port is in use, by another run perhaps; choose "
                "another one, or --dist-url auto on a single machine"
            ) from error
        raise


def _check(args: argparse.Namespace) -> None:
    gpus = torch.cuda.device_count()
    if args.num_gpus < 0:
        raise UsageError(f"--num-gpus {args.num_gpus}: it must be at least 0")
    if args.num_machines < 1:
        raise UsageError(f"--num-machines {args.num_machines}: it must be at least 1")
    if gpus and args.num_gpus > gpus:
        raise UsageError(f"--num-gpus {args.num_gpus}: this machine has {gpus} GPUs")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UsageError(
            f"--machine-rank {args.machine_rank}: the ranks of --num-machines {args.num_machines} "
            f"are 0 to {args.num_machines - 1}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UsageError(
            "--dist-url auto is for a single machine; several need tcp://HOST:PORT, a free port of "
            "the machine of rank 0"
        )


def _join(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Runs main(args) as one of torchrun's processes; a mistake is told by the first of them."""
    try:
        if (args.num_gpus, args.num_machines) != (1, 1):
            raise UsageError("--num-gpus and --num-machines are torchrun's to say: leave them out")
        processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if gpus and processes > gpus:
            raise UsageError(f"--nproc-per-node {processes}: this machine has {gpus} GPUs")
        if gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if gpus else "gloo")
        comm.create_local_process_group(processes)
        main(args)
    except UsageError:
        if os.environ["RANK"] == "0":
            raise
        sys.exit(2)
    distributed.destroy_process_group()


def checked_by_main_process(check: Callable[[], None]) -> None:
    """
    Has the main process call check(); what it raises there, every process raises.

    Raises:
        UsageError
    """
    mistake = None
    if comm.is_main_process():
        try:
            check()
        except UsageError as error:
            mistake = str(error)
    mistake = comm.all_gather(mistake)[0]
    if mistake is not None:
        raise UsageError(mistake)

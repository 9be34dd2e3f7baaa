"""Commands that torchrun starts several times, as the ranks of one run."""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

#: What torch.distributed's backends say when another rank's process has ended.
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Socket closed")


def torchrun_ranks() -> int:
    """Return how many ranks torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


def is_first_rank() -> bool:
    """Return whether this is rank 0, or the only one."""
    return torchrun_ranks() == 1 or os.environ["RANK"] == "0"


def rank_name() -> str:
    """Return the name of this rank in messages, or "" if it is the only one."""
    return f"rank {os.environ['RANK']} on {platform.node()}: " if torchrun_ranks() > 1 else ""


def local_device(name: str) -> str:
    """Return the device of this rank; for CUDA the GPU with the rank's number on this machine.

    Raises:
        ValueError: If all ranks would have the same GPU.
    """
    if torchrun_ranks() == 1 or not name.startswith("cuda"):
        return name
    if name != "cuda":
        raise ValueError(f"device: expected 'cuda' for several ranks, each of which has a GPU of its own, got {name!r}")
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Connect the ranks that torchrun has started, if any, for a while; all but rank 0 are silent.

    gloo is for tensors on the CPU, NCCL for those of CUDA.

    Args:
        args: Arguments of the command. ``on_ranks`` says whether the command may run on ranks.

    Raises:
        RuntimeError: If another rank ends too early.
        ValueError: If the command cannot run on ranks, or several ranks cannot use the device.
    """
    if torchrun_ranks() == 1:
        yield
        return
    if not args.on_ranks:
        raise ValueError("torchrun: expected a command that ranks share, such as train, got another: run it by itself")
    import torch
    import torch.distributed as dist

    import deepclust_ext.distributed.group  # noqa: F401 - before there is a group, which torch would keep; see there
    from deepclust_ext.commands._arguments import device

    chosen = torch.device(device(args))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    with Path(os.devnull).open("w") as nowhere:
        out, err = (sys.stdout, sys.stderr) if is_first_rank() else (nowhere, nowhere)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
                yield
            except RuntimeError as error:
                if not any(word in str(error) for word in _LOST):
                    raise
                raise RuntimeError(
                    "another rank has ended; torchrun says which one below, and that rank why, if it could; a run goes "
                    "on from its last checkpoint with --resume"
                ) from error
            # After an error other ranks may be gone, and nothing waits for them.
            dist.destroy_process_group()

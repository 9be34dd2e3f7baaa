"""Ranks that many tests share: processes forked once from one that has imported torch, connected by gloo."""

import datetime
import multiprocessing
import os
import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

#: The processes of a pool.
MOST = 4

#: Members of the groups that tests may ask for; all but the last one are not the world.
GROUPS = {"1": [0], "2": [0, 1], "3": [0, 1, 2], "odd": [1, 3], "4": [0, 1, 2, 3]}


class Pool:
    """Runs a function on the ranks of a group, all at once."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", "deepclust_ext.losses"])
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], *arguments: Any, ranks: int | str) -> list[Any]:
        """Return what ``function(group, *arguments)`` returns on each rank of a group, in their order.

        An argument that is a tuple made by :class:`PerRank` is given by rank. If a rank raises, this does, and the pool
        begins anew with the next call.
        """
        self._start()
        name = str(ranks)
        members = GROUPS[name]
        for place, member in enumerate(members):
            own = [x[place] if isinstance(x, PerRank) else x for x in arguments]
            self._pipes[member].send_bytes(pickle.dumps((name, function, own)))
        answers: list[Any] = []
        for member in members:
            if not self._pipes[member].poll(100):
                self.close()
                raise TimeoutError(f"rank {member} did not answer; {answers}")
            failed, answer = pickle.loads(self._pipes[member].recv_bytes())
            if failed:
                self.close()
                raise AssertionError(f"rank {member}: {answer}")
            answers.append(answer)
        return answers

    def _start(self) -> None:
        if self._processes:
            return
        store = Path(tempfile.mkdtemp(), "store")
        for rank in range(MOST):
            here, there = self._context.Pipe()
            arguments = (rank, str(store), there)
            process = self._context.Process(target=_serve, args=arguments, name=f"rank {rank}", daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def close(self) -> None:
        """End all ranks."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []


class PerRank(tuple[Any, ...]):
    """An argument for each rank."""


def _serve(rank: int, store: str, pipe: Connection) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", "a batch of .* tells little", RuntimeWarning)  # small ones are meant
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)  # of compilers
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, MOST),  # type: ignore[attr-defined]
        rank=rank,
        world_size=MOST,
        timeout=datetime.timedelta(seconds=60),
    )
    groups = {
        name: dist.group.WORLD if len(members) == MOST else dist.new_group(members) for name, members in GROUPS.items()
    }
    while True:
        try:
            name, function, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            answer = (False, function(groups[name], *arguments))
        except BaseException:
            answer = (True, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))

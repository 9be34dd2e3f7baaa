"""A program that starts a run, kills it at a random moment, and resumes it, until it has ended.

Moments are shares of the time that a whole run takes on the machine, so that some kills meet the run on any.

Arguments: folder, method, kills, seed, threads. Prints how many kills met a run that had not ended.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from deepclust_ext.training.files import RunFolder
from tests.training.runs import make_trainer


def start(out: Path, method: str) -> int:
    """Start or resume the run in a new process and return its number."""
    child = os.fork()
    if child:
        return child
    folder = RunFolder(out)
    resume = folder.checkpoint.exists() or folder.previous.exists()
    make_trainer(out, method=method).fit(resume=resume, overwrite=not resume)
    os._exit(0)


def main() -> None:
    """Kill, then let the run end; exits with 1 if a process ends by itself with an error."""
    out, method, kills, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    clock, met = random.Random(seed), 0
    torch.set_num_threads(int(sys.argv[5]))
    durations = []
    for name in ("first", "second"):
        began = time.monotonic()
        if os.waitpid(start(out.with_name(f"{out.name}-{name}"), method), 0)[1]:
            sys.exit(1)
        durations.append(time.monotonic() - began)
    for _ in range(kills):
        child = start(out, method)
        time.sleep(clock.uniform(0.1, 0.4) * min(durations))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status > 0:
            sys.exit(1)
        met += status == -signal.SIGKILL
    if os.waitpid(start(out, method), 0)[1]:
        sys.exit(1)
    print(met)


if __name__ == "__main__":
    main()

"""Training steps with the package of another checkout, in a process of its own that `benchmarks.steps` asks for them.

That process has the benchmarks of this checkout and deepclust_ext of the other, so both time the same parts. It reads
the name of a method of `benchmarks.steps.Stepper` and answers with a line of JSON.
"""

import importlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.clock import Sample

#: Result of a step -> the norm of its value, from a random batch that no augmentation made.
Norms = dict[str, float]


class OtherCheckout:
    """A stepper in a process that has the package of another checkout.

    Args:
        folder: Of the checkout.
        case: Name of the case.
        threads: Of torch.

    Raises:
        RuntimeError: If that process ends, for example without a native library; it has said why.
    """

    def __init__(self, folder: Path, case: str, threads: int) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "benchmarks.other_checkout", str(folder.resolve()), case, str(threads)]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self) -> Sample:
        """Make one step and return the seconds of its parts."""
        return self._ask("step")

    def fixed_step(self) -> Norms:
        """Make a step on random views, as :meth:`Stepper.fixed_step`."""
        return self._ask("fixed_step")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, request: str) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # the answer is missing then
            print(request, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.folder}: its process ended with status {self._process.wait()}")
        result: dict[str, float] = json.loads(answer)
        return result


def main(folder: str, case: str, threads: str) -> None:
    """Answer until there is no more input.

    Args:
        folder: Of the other checkout.
        case: Name of the case.
        threads: Of torch.
    """
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # whatever else is printed is no answer
    sys.path.insert(0, folder)
    torch.set_num_threads(int(threads))
    steps = importlib.import_module("benchmarks.steps")
    package = importlib.import_module("deepclust_ext")
    if not str(package.__file__).startswith(folder):
        raise SystemExit(f"expected deepclust_ext of {folder}, got {package.__file__}")
    if missing := steps.missing_kernels("cpu"):
        raise SystemExit(f"{folder}: {missing}")
    stepper = steps.make_steppers(steps.CASES[case])["fused"]
    with steps.memory_of_training():
        for line in sys.stdin:
            print(json.dumps(getattr(stepper, line.strip())()), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

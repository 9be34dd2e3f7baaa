"""Makes training steps with the package of another checkout, one for each line of input; `benchmarks.steps` asks.

This process has the benchmarks of this checkout and deepclust_ext of the other, so both time the same parts. It reads
the name of a method of `benchmarks.steps.Stepper` and answers with a line of JSON.
"""

import importlib
import json
import os
import sys

import torch


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
    for line in sys.stdin:
        print(json.dumps(getattr(stepper, line.strip())()), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

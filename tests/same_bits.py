"""Hashes of what every op gives on its samples, by instruction set: rewriting code without a change of results.

    python -m tests.same_bits            # compare with tests/same_bits.json
    python -m tests.same_bits --write    # after a change of results that is meant

A compiler decides where a product and a sum become one rounding, so hashes are those of one compiler.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from tests.forks import run_module
from tests.helpers import CAPABILITY_VARIABLE, INSTRUCTION_SETS
from tests.ops.opsamples import SAMPLE_INPUTS
from tests.ops.test_all_ops import call, gradients, native

PATH = Path(__file__).with_name("same_bits.json")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
GRID = 4096  # numbers of samples are rounded to 1 / GRID: how torch draws and multiplies them depends on the processor


def on_grid(tensor: Tensor) -> Tensor:
    """Return floating numbers rounded to the grid, others as they are."""
    return (tensor.double() * GRID).round().div(GRID).to(tensor.dtype) if tensor.is_floating_point() else tensor


def hash_of(results: list[Tensor]) -> str:
    """Return the hash of all bits of some tensors, of which every NaN counts as one value."""
    digest = hashlib.sha256()
    for result in results:
        numbers = result.detach().contiguous()
        if numbers.is_floating_point():
            numbers = torch.where(numbers.isnan(), torch.full_like(numbers, torch.nan), numbers)
        digest.update(numbers.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def hashes() -> dict[str, str]:
    """Return the hash of every op and dtype, over all samples, of results and gradients, on this instruction set."""
    found = {}
    for op, samples_of in sorted(SAMPLE_INPUTS.items()):
        for dtype in DTYPES:
            results: list[Tensor] = []
            for sample in samples_of(dtype, "cpu"):
                moved = sample.map(on_grid)
                results += [*call(native(op), moved), *gradients(native(op), moved)]
            found[f"{op} {str(dtype).removeprefix('torch.')}"] = hash_of(results)
    return found


def compiler() -> str:
    """Return the version of the compiler that built the library."""
    from deepclust_ext import _C

    version: str = _C.build_info()["compiler"]
    return version


def hashes_of(instruction_set: str) -> dict[str, str]:
    """Return the hashes of one of this processor's instruction sets, from a process that uses it."""
    done = run_module("tests.same_bits", "--print", ATEN_CPU_CAPABILITY=CAPABILITY_VARIABLE[instruction_set])
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def changed(instruction_set: str) -> list[str]:
    """Return the ops and dtypes whose results on an instruction set are not those of the file."""
    kept = json.loads(PATH.read_text())["hashes"][instruction_set]
    found = hashes_of(instruction_set)
    return sorted(name for name in kept.keys() | found.keys() if kept.get(name) != found.get(name))


def main() -> None:
    """Compare, print or write."""
    parser = argparse.ArgumentParser(description="Compare the results of all ops with those that are kept, by hash.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", action="store_true", help="keep what the ops give now, of the sets that can run here")
    group.add_argument("--print", action="store_true", help="print the hashes of the instruction set in use")
    args = parser.parse_args()
    if args.print:
        print(json.dumps(hashes()))
        return
    if args.write:
        found = {name: hashes_of(name) for name in INSTRUCTION_SETS}
        PATH.write_text(json.dumps({"compiler": compiler(), "hashes": found}, indent=1) + "\n")
        return
    kept = json.loads(PATH.read_text())
    for name in INSTRUCTION_SETS:
        if name in kept["hashes"]:
            print(f"{name}: " + (", ".join(changed(name)) or "the same bits"))


if __name__ == "__main__":
    main()

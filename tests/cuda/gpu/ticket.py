"""What `make test-gpu` does on a machine with a GPU: stages in the order of their worth, each with a time limit.

A card is often lent for minutes. So what tells most comes first, a stage that takes too long is ended, the results of
each are written as it ends, and `--from STAGE` goes on later with what earlier stages left. Nothing is installed.

    python -m tests.cuda.gpu.ticket [--from STAGE] [--results FOLDER]
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
RECORD_NAME = "stages.json"
SUMMARY_LINES = 60
LINES_OF_A_FAILURE = 6

PASSED = "passed"


@dataclass(frozen=True)
class Stage:
    """Commands that run one after another in one time limit."""

    name: str
    seconds: int
    commands: tuple[tuple[str, ...], ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    name: str
    status: str  # PASSED or what went wrong
    seconds: float
    log: str  # name of its file


def stages(python: str) -> tuple[Stage, ...]:
    """Return the stages, run by that Python; the first four are to take eight minutes on 16 cores."""
    pytest: tuple[str, ...] = (python, "-m", "pytest", "-q")
    if importlib.util.find_spec("xdist"):  # it is used where it is there
        pytest += ("--numprocesses", "8")

    def sanitized(tool: str) -> tuple[str, ...]:
        return (
            *("compute-sanitizer", "--error-exitcode", "1", "--report-api-errors", "no"),
            *("--kernel-name", "kernel_substring=deepclust", "--tool", tool, python, "-m", "tests.cuda.gpu.run_ops"),
        )

    is_there = "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'"
    return (
        # For the card that is visible alone, as setup.py chooses.
        Stage(
            "build",
            210,
            ((python, "-c", is_there), (python, "setup.py", "--quiet", "build_ext", "--inplace")),
            {"DEEPCLUST_EXT_CUDA": "1"},
        ),
        Stage("conformance", 60, ((*pytest, "tests/cuda/conformance", "-k", "gpu"),)),
        Stage("ops", 120, ((*pytest, "tests/ops", "-k", "cuda"), (*pytest, "tests/cuda/gpu"))),
        # Without torch's cache of device memory, each tensor is an allocation of its own, so that its end is seen.
        Stage(
            "sanitizers", 90, (sanitized("memcheck"), sanitized("racecheck")), {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        ),
        Stage("first-cases", 180, ((python, "-m", "benchmarks", "--device", "cuda", "--quick"),)),
        Stage("all-cases", 1200, ((python, "-m", "benchmarks", "--device", "cuda"),)),
    )


def describe_gpu() -> str:
    """Return name, memory and driver of the GPUs.

    Raises:
        OSError: There is no nvidia-smi, or it finds none.
    """
    query = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise OSError("test-gpu: expected a GPU and its driver, got no nvidia-smi on PATH") from None
    if found.returncode or not found.stdout.strip():
        raise OSError(f"test-gpu: expected a GPU, nvidia-smi says: {(found.stderr or found.stdout).strip()}")
    return found.stdout.strip().replace("\n", "; ")


def run_stage(stage: Stage, results: Path) -> Outcome:
    """Run the commands of a stage until one fails or the time is over; what they print goes to a file."""
    log = results / f"{stage.name}.log"
    start = time.monotonic()
    status = PASSED
    with log.open("w") as output:
        for command in stage.commands:
            output.write(f"$ {' '.join(command)}\n")
            output.flush()
            try:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | stage.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that what it starts ends with it
                )
            except OSError as error:
                output.write(f"{error}\n")
                status = f"failed: {command[0]}: {error.strerror}"
                break
            try:
                code = process.wait(max(stage.seconds - (time.monotonic() - start), 0.1))
            except subprocess.TimeoutExpired:
                status = f"out of time after {stage.seconds} s"
            else:
                status = PASSED if code == 0 else f"failed with status {code}"
            finally:
                _end(process)
            if status != PASSED:
                break
    return Outcome(stage.name, status, round(time.monotonic() - start, 1), log.name)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_record(results: Path) -> dict[str, Outcome]:
    """Return the outcomes that are written down, by name."""
    path = results / RECORD_NAME
    stored = json.loads(path.read_text())["stages"] if path.is_file() else []
    return {entry["name"]: Outcome(**entry) for entry in stored}


def write_record(results: Path, gpu: str, outcomes: Sequence[Outcome]) -> None:
    """Write the outcomes down."""
    unfinished = results / f"{RECORD_NAME}.new"
    unfinished.write_text(json.dumps({"gpu": gpu, "stages": [asdict(outcome) for outcome in outcomes]}, indent=2))
    unfinished.replace(results / RECORD_NAME)


def summarize(gpu: str, outcomes: Sequence[Outcome], results: Path) -> list[str]:
    """Return at most SUMMARY_LINES lines: the stages, what failed in them, and the table of the last benchmarks."""
    lines = [f"GPU: {gpu}", *(f"{o.name:<12} {o.seconds:7.1f} s  {o.status}" for o in outcomes)]
    for outcome in outcomes:
        if outcome.status != PASSED:
            lines += ["", f"{outcome.name}: {results / outcome.log}", *_what_failed(results / outcome.log)]
    tables = [
        [line for line in (results / o.log).read_text(errors="replace").splitlines() if line.startswith("| ")]
        for o in outcomes
        if o.name.endswith("-cases")
    ]
    table = next((table for table in reversed(tables) if table), [])
    return [line[:200] for line in [*lines, "", *table][:SUMMARY_LINES]]


def _what_failed(log: Path) -> list[str]:
    """Return the lines of a log that say most of a failure."""
    lines = log.read_text(errors="replace").splitlines()
    telling = [line for line in lines if line.startswith(("FAILED ", "ERROR ", "========= ")) or "error:" in line]
    return telling[:LINES_OF_A_FAILURE] or lines[-LINES_OF_A_FAILURE:]


def run_all(to_run: Sequence[Stage], first: str, results: Path) -> int:
    """Run the stages from the first one on and print the summary; return 1 if one did not pass.

    Raises:
        OSError: There is no GPU.
    """
    gpu = describe_gpu()
    results.mkdir(parents=True, exist_ok=True)
    before = read_record(results)
    place = [stage.name for stage in to_run].index(first)
    outcomes = [before[stage.name] for stage in to_run[:place] if stage.name in before]
    for stage in to_run[place:]:
        print(f"{stage.name}: at most {stage.seconds} s", flush=True)
        outcomes.append(run_stage(stage, results))
        write_record(results, gpu, outcomes)
        print(f"{stage.name}: {outcomes[-1].status}, {outcomes[-1].seconds} s", flush=True)
        if stage.name == "build" and outcomes[-1].status != PASSED:
            break  # the others would test another library, or none
    print("\n".join(["", *summarize(gpu, outcomes, results)]))
    return int(any(outcome.status != PASSED for outcome in outcomes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    to_run = stages(sys.executable)
    names = [stage.name for stage in to_run]
    parser = argparse.ArgumentParser("python -m tests.cuda.gpu.ticket", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--from", dest="first", choices=names, default=names[0], help="the stage to begin with")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "test-gpu", help="folder of logs and record")
    options = parser.parse_args(arguments)
    try:
        return run_all(to_run, options.first, options.results)
    except OSError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `python -m benchmarks`; see benchmarks/README.md for what the numbers mean."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

import torch

from benchmarks import kmeans, steps
from benchmarks.floors import CARDS
from benchmarks.floors.cpu import Rates, measure_rates
from benchmarks.floors.tables import FLOOR_TABLES
from benchmarks.glance import glance_table
from benchmarks.growth import growth_lines
from benchmarks.harness import (
    DEFAULT_DTYPES,
    DTYPES,
    Case,
    cases_of,
    float32_products,
    load_op,
    missing_kernels,
    op_names,
)
from benchmarks.page import peer_versions, write_page
from benchmarks.report import (
    ROOT,
    Row,
    Setting,
    csv_path,
    current_commit,
    describe_system,
    format_table,
    instruction_set,
    last_runs,
    machine_name,
    read_csv,
    update_csv,
)
from benchmarks.run import print_case, run_case

#: What is no op but measured too, in float32: for about so many seconds a case, or only once if that is 0.
#: Rates are those of a CPU; a training step has no floor.
BEYOND_OPS: Mapping[str, Callable[[Setting, float, Rates | None], Iterable[Row]]] = {
    "KMeans": kmeans.measure_series,
    "KMeans_grid": kmeans.measure_grid,
    "training_step": lambda setting, seconds, rates: steps.measure_digits(setting, seconds),
}
BEYOND_OPS_ON = {"cpu": tuple(BEYOND_OPS), "cuda": ("KMeans",)}
BY_NAME_ALONE = {"KMeans_grid"}  # too long to be run when all is

SERIES_SECONDS, SECONDS = 3.0, 10.0  # per case, of a series and of all cases


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    names = ", ".join([*op_names(), *BEYOND_OPS])
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Check, then time, ops against their rivals; write a CSV and a report.",
        epilog="On the CPU each op has a series of cases that differ in N alone, and these are run unless --all, "
        "--cases or --quick says otherwise; on a GPU all are.",
    )
    parser.add_argument("--op", nargs="+", default=[], metavar="OP", help=f"which: {names} (default: all)")
    parser.add_argument("--all", action="store_true", help="all cases of each op, not only its series")
    parser.add_argument("--cases", metavar="TEXT", default="", help="the cases with this in their name, of all")
    parser.add_argument("--quick", action="store_true", help="only the first case, 3 rounds; no memory, no report")
    parser.add_argument("--seconds", type=float, help=f"time per case (default: {SERIES_SECONDS:g}, all: {SECONDS:g})")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: float32; on cuda all but float64")
    parser.add_argument("--floors", action="store_true", help="print floors and predictions for GPUs, run nothing")
    parser.add_argument("--from", dest="csv", type=Path, metavar="CSV", help="make the report of a CSV, run nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of CSV and report")
    return parser


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a message if something is asked for that cannot be measured."""
    known = [*op_names(), *BEYOND_OPS]
    unknown = set(options.op) - set(known)
    if unknown:
        parser.error(f"--op: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if missing := missing_kernels(options.device):
        parser.error(missing)
    if options.device == "cpu" and options.dtype == "float32-high":
        parser.error("--dtype float32-high: a setting of products on CUDA")
    beyond = set(options.op) & set(BEYOND_OPS)
    if only_cpu := beyond - set(BEYOND_OPS_ON[options.device]):
        parser.error(f"--op {' '.join(sorted(only_cpu))}: measured on the CPU only")
    if beyond and options.dtype not in (None, "float32"):
        parser.error(f"--op {' '.join(sorted(beyond))}: measured in float32 only")


def choose_cases(name: str, options: argparse.Namespace) -> list[Case]:
    """Return which cases of an op are asked for."""
    op = load_op(name)
    if options.device == "cpu" and not (options.all or options.cases or options.quick):
        return list(op.SERIES)
    cases = [case for case in cases_of(op, options.device) if options.cases in case.name]
    return cases[:1] if options.quick else cases


def run_op(name: str, options: argparse.Namespace, settings: Mapping[Setting, Rates | None]) -> Iterator[list[Row]]:
    """Measure and print the cases of an op in every setting; yield the rows of each."""
    op = load_op(name)
    for case in choose_cases(name, options):
        for setting, rates in settings.items():
            with float32_products(DTYPES[setting.dtype][1]):
                rows, floors = run_case(name, op, case, setting, rates, options.seconds, memory=not options.quick)
            print_case(name, op, case, setting, rows, floors)
            yield rows


def run_beyond(name: str, options: argparse.Namespace, settings: Mapping[Setting, Rates | None]) -> Iterator[list[Row]]:
    """Measure and print what is no op; yield the rows of each case."""
    (setting,) = (setting for setting in settings if setting.dtype == "float32")
    measured = BEYOND_OPS[name](setting, options.seconds, settings[setting])
    for case, of_case in groupby(measured, key=lambda row: row.case):
        rows = list(of_case)
        print(f"\n{name} {case}\n{format_table(rows, 'yardstick')}", flush=True)
        yield rows


def run(options: argparse.Namespace, command: str) -> int:
    """Run what is asked for, print tables, update the machine's CSV, write the report; return 1 if one is wrong."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        options.seconds = 0.0
    elif options.seconds is None:
        options.seconds = SECONDS if options.all or options.cases else SERIES_SECONDS
    dtypes = (options.dtype,) if options.dtype else DEFAULT_DTYPES[options.device]
    setting = Setting(
        machine=machine_name(options.device),
        instruction_set=instruction_set(options.device),
        device=options.device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=current_commit(),
        dtype=", ".join(dtypes),
    )
    environment = {name: str(value) for name, value in asdict(setting).items()} | describe_system()
    print(", ".join(f"{name} {value}" for name, value in environment.items()))
    settings: dict[Setting, Rates | None] = {}
    for dtype in dtypes:
        rates = settings[replace(setting, dtype=dtype)] = (
            measure_rates(DTYPES[dtype][0]) if options.device == "cpu" else None
        )
        if rates:
            environment[f"rates in {dtype}"] = str(rates)
            print(f"this machine in {dtype}: {rates}")
    beyond = [name for name in BEYOND_OPS_ON[options.device] if name not in BY_NAME_ALONE]
    if options.cases or "float32" not in dtypes:
        beyond = []
    path = csv_path(options.out, setting)
    everything: list[Row] = []
    for name in options.op or [*op_names(), *beyond]:
        measured: list[Row] = []
        runs = run_beyond(name, options, settings) if name in BEYOND_OPS else run_op(name, options, settings)
        for rows in runs:
            measured += rows
            update_csv(path, rows)  # after every case, so that an interrupted run keeps what it has
        for dtype in dtypes:
            print(
                "".join(f"{line}\n" for line in growth_lines([row for row in measured if row.dtype == dtype])), end=""
            )
        everything += measured
    print(f"\n{glance_table([row for row in everything if row.dtype == dtypes[0]])}\n\nwritten to {path}")
    if not options.quick:
        write_page(
            path.with_suffix(".html"), everything, {**environment, **peer_versions(options.device), "command": command}
        )
    return int(any(row.status.startswith("WRONG") for row in everything))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.floors:
        for card, rates in CARDS.items():
            for names, floor_table in FLOOR_TABLES.items():
                print(f"{card}: {names}\n\n{floor_table(rates)}\n")
        return 0
    if options.csv:
        if not options.csv.is_file():
            parser.error(f"--from: expected a CSV of results, got {options.csv}")
        rows = last_runs(read_csv(options.csv))
        write_page(options.out / options.csv.with_suffix(".html").name, rows, {"figures of": options.csv.name})
        print(glance_table([row for row in rows if row.dtype == (options.dtype or "float32")]))
        return 0
    check_options(parser, options)
    return run(options, shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)]))


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # torch's compiler warns of torch itself
    sys.exit(main())

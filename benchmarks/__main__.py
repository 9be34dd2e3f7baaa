"""The command line: `python -m benchmarks [OP ...]`; see benchmarks/README.md for what the numbers mean."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.clock import Rounds, paired_ratio, summarize, time_rounds
from benchmarks.contrastive_floors import contrastive_floor_table
from benchmarks.floors import CARDS, floor_lines
from benchmarks.gather_floors import gather_floor_table
from benchmarks.harness import (
    DEFAULT_DTYPES,
    DTYPES,
    Case,
    OpBenchmark,
    admit,
    cases_of,
    float32_products,
    load_op,
    load_providers,
    modes_of,
    op_names,
)
from benchmarks.kmeans_floors import kmeans_floor_table
from benchmarks.memory import measure_allocated, measure_in_subprocess
from benchmarks.mining_floors import mining_floor_table
from benchmarks.neighbors_floors import neighbors_floor_table
from benchmarks.report import (
    ROOT,
    Row,
    Setting,
    csv_path,
    current_commit,
    format_table,
    machine_name,
    update_csv,
)
from benchmarks.sinkhorn_floors import sinkhorn_floor_table
from deepclust_ext._extension import NATIVE_DEVICES

FLOOR_TABLES = {
    "batch_hard_mining, fused_hsd_loss": mining_floor_table,
    "diffused_neighbor_gather": gather_floor_table,
    "fused_contrastive_loss": contrastive_floor_table,
    "kmeans_assign, kmeans_update": kmeans_floor_table,
    "nearest_neighbors": neighbors_floor_table,
    "sinkhorn_knopp": sinkhorn_floor_table,
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Check, then time, ops against their rivals.")
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"which ops: {', '.join(op_names())} (default: all)")
    parser.add_argument("--cases", metavar="TEXT", default="", help="only cases with this in their name")
    parser.add_argument("--quick", action="store_true", help="only the first case, 3 rounds, no memory")
    parser.add_argument("--seconds", type=float, default=10.0, help="time per case (default: 10)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: float32; on cuda all but float64")
    parser.add_argument("--floors", action="store_true", help="print floors and predictions for an H200, run nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV")
    return parser


def run_case(name: str, op: OpBenchmark, case: Case, setting: Setting, seconds: float, memory: bool) -> list[Row]:
    """Measure one case and return a row per provider and mode, or one per provider that was not timed."""
    inputs = case.inputs(DTYPES[setting.dtype][0], setting.device)
    case_modes = modes_of(op, case)
    timed: Rounds = {}
    if case.memory_only:
        functions, statuses = load_providers(op, case)
        statuses.update(dict.fromkeys(functions, "memory only"))
    else:
        functions, statuses = admit(op, case, inputs)
        calls = {op.YARDSTICK.name: case.bind(op.YARDSTICK.function), **case.beside, **functions}
        modes = {name: case_modes if name != op.YARDSTICK.name else ("forward",) for name in calls}
        timed = time_rounds(calls, modes, inputs, setting.device, seconds)
    peaks: dict[str, float] = {}
    for provider in functions if memory else ():
        if setting.device == "cuda":
            peaks[provider] = measure_allocated(functions[provider], inputs, case_modes)
        else:
            peaks[provider] = measure_in_subprocess(name, case.name, provider, setting.dtype, setting.threads)
    make_row = partial(Row, op=name, case=case.name, **asdict(setting))
    whole = case_modes[-1]  # the mode that memory is measured in
    rows = []
    for (provider, mode), times in timed.items():
        summary = summarize(times)
        ours = timed.get(("ours", mode))
        floor = provider == op.YARDSTICK.name
        rows.append(
            make_row(
                provider=provider,
                mode=mode,
                status="ok",
                rounds=len(times),
                **asdict(summary),
                per_ours=paired_ratio(times, ours) if ours else None,
                per_yardstick=paired_ratio(times, timed[op.YARDSTICK.name, "forward"]),
                gflop_per_s=case.bind(op.YARDSTICK.flops)(*inputs) / summary.median_ms / 1e6 if floor else None,
                peak_extra_mb=peaks.get(provider) if mode == whole else None,
            )
        )
    for provider, status in statuses.items():
        rows.append(make_row(provider=provider, mode=whole, status=status, peak_extra_mb=peaks.get(provider)))
    return rows


def print_case(name: str, op: OpBenchmark, case: Case, setting: Setting, rows: list[Row]) -> None:
    """Print the table of a case and, on CUDA, how far ours is from the floor."""
    flops = case.bind(op.YARDSTICK.flops)(*case.inputs(torch.float32, "cpu"))
    label = "" if setting.dtype == "float32" else f" {setting.dtype}"
    print(f"\n{name} {case.name}{label}, {op.YARDSTICK.name}: {flops / 1e9:.4g} GFLOP")
    print(format_table(rows, op.YARDSTICK.name), flush=True)
    if setting.device == "cuda":
        ours = {row.mode: row.median_ms for row in rows if row.provider == "ours" and row.median_ms is not None}
        for line in floor_lines(setting.machine, case.works or op.WORK, case.rows, case.dims, setting.dtype, ours):
            print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks asked for, print tables, update the machine's CSV; return 1 if a provider is wrong."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.floors:
        for names, floor_table in FLOOR_TABLES.items():
            print(f"{names}\n\n{floor_table(CARDS['NVIDIA H200'])}\n")
        return 0
    unknown = set(options.ops) - set(op_names())
    if unknown:
        parser.error(f"OP: expected some of {', '.join(op_names())}, got {', '.join(sorted(unknown))}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if options.device == "cuda" and "cuda" not in NATIVE_DEVICES:
        parser.error("--device cuda: deepclust_ext was built without CUDA kernels, so ours would be the reference")
    if options.device == "cpu" and options.dtype == "float32-high":
        parser.error("--dtype float32-high: a setting of products on CUDA")
    if options.threads:
        torch.set_num_threads(options.threads)
    dtypes = (options.dtype,) if options.dtype else DEFAULT_DTYPES[options.device]
    setting = Setting(
        machine=machine_name(options.device),
        device=options.device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=current_commit(),
        dtype=", ".join(dtypes),
    )
    path = csv_path(options.out, setting)
    print(", ".join(f"{name} {value}" for name, value in asdict(setting).items()))
    wrong = False
    seconds = 0 if options.quick else options.seconds
    for name in options.ops or op_names():
        op = load_op(name)
        cases = [case for case in cases_of(op, options.device) if options.cases in case.name]
        for case in cases[:1] if options.quick else cases:
            for dtype in dtypes:
                one = replace(setting, dtype=dtype)
                with float32_products(DTYPES[dtype][1]):
                    rows = run_case(name, op, case, one, seconds, memory=not options.quick)
                print_case(name, op, case, one, rows)
                update_csv(path, rows)  # after every case, so that an interrupted run keeps what it has
                wrong = wrong or any(row.status.startswith("WRONG") for row in rows)
    print(f"\nwritten to {path}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

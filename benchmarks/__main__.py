"""The command line: `python -m benchmarks [OP ...]`; see benchmarks/README.md for what the numbers mean."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import (
    Case,
    OpBenchmark,
    Rounds,
    admit,
    load_op,
    op_names,
    paired_ratio,
    summarize,
    time_rounds,
)
from benchmarks.memory import measure_in_subprocess
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


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Check, then time, ops against their rivals.")
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"which ops: {', '.join(op_names())} (default: all)")
    parser.add_argument("--cases", metavar="TEXT", default="", help="only cases with this in their name")
    parser.add_argument("--quick", action="store_true", help="only the first case, 3 rounds, no memory")
    parser.add_argument("--seconds", type=float, default=10.0, help="time per case (default: 10)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float64", "float16", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV")
    return parser


def run_case(name: str, op: OpBenchmark, case: Case, setting: Setting, seconds: float, memory: bool) -> list[Row]:
    """Measure one case and return a row per provider and mode, or one per provider that was not timed."""
    inputs = case.inputs(getattr(torch, setting.dtype), setting.device)
    if case.memory_only:
        timed: Rounds = {}
        statuses = {provider: case.skip.get(provider, "memory only") for provider in op.PROVIDERS}
    else:
        functions, statuses = admit(op, case, inputs)
        timed = time_rounds(op, functions, inputs, setting.device, seconds)
    runnable = {provider for provider, _ in timed if provider != op.YARDSTICK.name}
    runnable |= {provider for provider, status in statuses.items() if status == "memory only"}
    peaks = {
        provider: measure_in_subprocess(name, case.name, provider, setting.dtype, setting.device, setting.threads)
        for provider in sorted(runnable if memory else ())
    }
    make_row = partial(Row, op=name, case=case.name, **asdict(setting))
    whole = op.MODES[-1]  # the mode that memory is measured in
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
                gflop_per_s=op.YARDSTICK.flops(*inputs) / summary.median_ms / 1e6 if floor else None,
                peak_extra_mb=peaks.get(provider) if mode == whole else None,
            )
        )
    for provider, status in statuses.items():
        rows.append(make_row(provider=provider, mode=whole, status=status, peak_extra_mb=peaks.get(provider)))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks asked for, print tables, update the machine's CSV; return 1 if a provider is wrong."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    unknown = set(options.ops) - set(op_names())
    if unknown:
        parser.error(f"OP: expected some of {', '.join(op_names())}, got {', '.join(sorted(unknown))}")
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = Setting(
        machine=machine_name(options.device),
        device=options.device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=current_commit(),
        dtype=options.dtype,
    )
    path = csv_path(options.out, setting)
    print(", ".join(f"{name} {value}" for name, value in asdict(setting).items()))
    wrong = False
    for name in options.ops or op_names():
        op = load_op(name)
        cases = [case for case in op.CASES if options.cases in case.name]
        for case in cases[:1] if options.quick else cases:
            rows = run_case(
                name, op, case, setting, seconds=0 if options.quick else options.seconds, memory=not options.quick
            )
            flops = op.YARDSTICK.flops(*case.inputs(torch.float32, "cpu"))
            print(f"\n{name} {case.name}, {op.YARDSTICK.name}: {flops / 1e9:.4g} GFLOP")
            print(format_table(rows, op.YARDSTICK.name), flush=True)
            update_csv(path, rows)  # after every case, so that an interrupted run keeps what it has
            wrong = wrong or any(row.status.startswith("WRONG") for row in rows)
    print(f"\nwritten to {path}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

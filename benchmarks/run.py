"""Measures a case: the check, times, memory and floors of all its providers, as rows and for a terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch

from benchmarks.clock import Rounds, paired_ratio, summarize, time_rounds
from benchmarks.floors import CARDS, floor_lines
from benchmarks.floors.cpu import Rates, cpu_floor_lines, find_floors
from benchmarks.harness import DTYPES, Case, OpBenchmark, admit, load_providers, modes_of
from benchmarks.memory import measure_allocated, measure_in_fork
from benchmarks.report import Row, Setting, format_table


def run_case(
    name: str, op: OpBenchmark, case: Case, setting: Setting, rates: Rates | None, seconds: float, *, memory: bool
) -> tuple[list[Row], list[str]]:
    """Measure one case; return a row per provider and mode, or one per provider that was not timed, and the floors.

    Args:
        name: Name of the op.
        op: Its benchmark.
        case: One of its cases.
        setting: Where and on what.
        rates: Of this machine in the dtype of the setting; None on a GPU.
        seconds: How long to time, about.
        memory: Whether to measure memory, too.
    """
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
            peaks[provider] = measure_in_fork(name, case.name, provider, setting.dtype, setting.threads)
    ours_ms = {mode: summarize(times).median_ms for (provider, mode), times in timed.items() if provider == "ours"}
    floors: dict[str, float] = {}
    lines: list[str] = []
    if rates and ours_ms:
        with torch.no_grad():
            found = find_floors(op, case, inputs, functions["ours"](*inputs), setting.dtype)
        floors = {mode: floor.milliseconds(rates) for mode, floor in found.items()}
        lines = cpu_floor_lines(found, rates, ours_ms)
    elif setting.device == "cuda":
        floors = card_floors(op, case, setting)
        lines = floor_lines(setting.machine, case.works or op.WORK, case.rows, case.dims, setting.dtype, ours_ms)
    make_row = partial(Row, op=name, case=case.name, **asdict(setting))
    whole = case_modes[-1]  # the mode that memory is measured in
    rows = []
    for (provider, mode), times in timed.items():
        summary = summarize(times)
        ours = timed.get(("ours", mode))
        is_yardstick = provider == op.YARDSTICK.name
        floor_ms = floors.get(mode) if provider in functions else None
        rows.append(
            make_row(
                provider=provider,
                mode=mode,
                status="ok",
                rounds=len(times),
                **asdict(summary),
                per_ours=paired_ratio(times, ours) if ours else None,
                per_yardstick=paired_ratio(times, timed[op.YARDSTICK.name, "forward"]),
                gflop_per_s=case.bind(op.YARDSTICK.flops)(*inputs) / summary.median_ms / 1e6 if is_yardstick else None,
                peak_extra_mb=peaks.get(provider) if mode == whole else None,
                floor_ms=floor_ms,
                per_floor=summary.median_ms / floor_ms if floor_ms else None,
            )
        )
    for provider, status in statuses.items():
        rows.append(make_row(provider=provider, mode=whole, status=status, peak_extra_mb=peaks.get(provider)))
    return rows, lines


def card_floors(op: OpBenchmark, case: Case, setting: Setting) -> dict[str, float]:
    """Return the floors of the modes in milliseconds on a GPU whose rates are known."""
    if setting.machine not in CARDS or setting.dtype == "float64":
        return {}
    works = case.works or op.WORK
    card = CARDS[setting.machine]
    floors = {mode: 1e3 * work(case.rows, case.dims, setting.dtype).seconds(card) for mode, work in works.items()}
    return {**floors, "both": sum(floors.values())}


def print_case(
    name: str, op: OpBenchmark, case: Case, setting: Setting, rows: Sequence[Row], floors: Sequence[str]
) -> None:
    """Print the table of a case, and how far ours is from the floor."""
    flops = case.bind(op.YARDSTICK.flops)(*case.inputs(torch.float32, "cpu"))
    label = "" if setting.dtype == "float32" else f" {setting.dtype}"
    print(f"\n{name} {case.name}{label}, {op.YARDSTICK.name}: {flops / 1e9:.4g} GFLOP")
    print(format_table(rows, op.YARDSTICK.name))
    print("".join(f"{line}\n" for line in floors), end="", flush=True)

"""Rows of results: how they are named, printed, and kept in one CSV per machine and instruction set."""

import csv
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch

from deepclust_ext.commands._installation import collect_info

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Setting:
    """Where and on what a run was made."""

    machine: str
    instruction_set: str  # of the CPU kernels that ran; on a GPU nothing
    device: str
    threads: int
    torch: str
    commit: str
    dtype: str  # a key of harness.DTYPES: "float32-high" is float32 with torch's lower precision of products on CUDA


@dataclass(frozen=True)
class Row:
    """One line of the CSV; an empty cell means not measured, and `status` says why."""

    op: str
    case: str
    provider: str
    mode: str
    machine: str
    instruction_set: str  # of the CPU kernels that ran; on a GPU nothing
    device: str
    threads: int
    torch: str
    commit: str
    dtype: str
    status: str  # "ok", "memory only", or why it was not timed: "WRONG: ...", "failed: ...", "not installed: ...", ...
    rounds: int | None = None
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    per_ours: float | None = None  # this provider's time / ours, same mode: above 1 ours is faster
    per_yardstick: float | None = None  # this provider's time / the yardstick's
    gflop_per_s: float | None = None  # of the yardstick, whose operations are known
    peak_extra_mb: float | None = None  # of one call, forward and, if the op is timed so, backward
    floor_ms: float | None = None  # the least that this mode can take on this machine
    per_floor: float | None = None  # this provider's time / the floor


COLUMNS = [column.name for column in fields(Row)]
KEY = ("op", "provider", "mode", "case", "dtype", "device", "threads", "instruction_set", "torch", "commit")
OURS = ("ours", "fused")  # providers that are this package: an op, and a training step with our ops
PARSERS: dict[Any, Callable[[str], Any]] = {str: str, int: int, int | None: int, float | None: float}


def machine_name(device: str) -> str:
    """Return the model of the processor, or of the GPU."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    name = facts.get("model name", platform.machine())
    # Virtual machines may hide the model behind a bare brand; family and model tell generations apart.
    if not re.search(r"\d", name):
        name += f" family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    return name


def describe_system() -> dict[str, str]:
    """Return what a row does not say of where it is measured: cores that this process may use, system and date."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cores": str(cores), "system": platform.platform(terse=True), "date": f"{date.today():%Y-%m-%d}"}


def instruction_set(device: str) -> str:
    """Return which instruction set the CPU kernels run with, as `deepclust-ext info` says it; nothing on a GPU."""
    return str(collect_info()["cpu_capability"]) if device == "cpu" else ""


def slug(text: str) -> str:
    """Return a text as part of a file name: lower case, trademarks dropped, everything else than a-z and 0-9 a dash."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm|c)\)|@.*", "", text.lower())).strip("-")


def csv_path(folder: Path, setting: Setting) -> Path:
    """Return the file of a GPU, or of a processor, its instruction set and a number of threads."""
    if setting.device == "cuda":
        return folder / f"{slug(setting.machine)}.csv"
    threads = f"{setting.threads}-thread{'s' * (setting.threads != 1)}"
    return folder / f"{slug(setting.machine)}-{slug(setting.instruction_set)}-{threads}.csv"


def current_commit(folder: Path = ROOT) -> str:
    """Return a checkout's short commit, "-dirty" if anything but results differs from it, or "unknown" without git."""

    def git(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)

    try:
        commit = git("rev-parse", "--short=10", "HEAD").stdout.strip()
        unchanged = git("diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results").returncode == 0
    except OSError:
        return "unknown"
    return commit + "-dirty" * (not unchanged) if commit else "unknown"


def update_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write rows into a file in place of those with the same key; all others stay."""
    kept: dict[tuple[str, ...], dict[str, str]] = {}
    if path.exists():
        with path.open(newline="") as stream:
            kept = {tuple(line[name] for name in KEY): line for line in csv.DictReader(stream)}
    for row in rows:
        line = {name: format_cell(value) for name, value in asdict(row).items()}
        kept[tuple(line[name] for name in KEY)] = line
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a file; columns that came after it was written are empty."""
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        found = reader.fieldnames or []
        if not set(KEY) <= set(found) <= set(COLUMNS):
            raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(found) or 'none'}")
        return [parse_row(line) for line in reader]


def parse_row(line: dict[str, str]) -> Row:
    """Return a row from its cells."""
    values: dict[str, Any] = {}
    for column in fields(Row):
        parse, cell = PARSERS[column.type], line.get(column.name, "")
        values[column.name] = parse(cell) if cell or parse is str else None
    return Row(**values)


def identify_case(row: Row) -> tuple[str, ...]:
    """Return what rows have in common that were measured together, and are measured again with another commit."""
    return row.op, row.case, row.dtype, row.device, str(row.threads), row.instruction_set


def last_runs(rows: Sequence[Row]) -> list[Row]:
    """Return of every case the rows with the commit and torch of its last row: what was measured together last."""
    last = {identify_case(row): (row.commit, row.torch) for row in rows}
    return [row for row in rows if (row.commit, row.torch) == last[identify_case(row)]]


def format_cell(value: str | float | None) -> str:
    """Return a value as text: four significant digits, nothing for None."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def format_table(rows: Sequence[Row], yardstick: str) -> str:
    """Return the rows of one case, aligned for a terminal."""
    titles = {
        "provider": "provider",
        "mode": "mode",
        "median_ms": "ms",
        "p20_ms": "p20",
        "p80_ms": "p80",
        "per_ours": "/ ours",
        "per_yardstick": f"/ {yardstick}",
        "gflop_per_s": "GFLOP/s",
        "peak_extra_mb": "extra MB",
        "per_floor": "/ floor",
    }
    table = [list(titles.values())]
    for row in rows:
        cells = [format_cell(getattr(row, name)) for name in titles]
        table.append(cells if row.status == "ok" else [*cells, row.status])
    widths = [max(len(line[i]) for line in table) for i in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, [*widths, 0], strict=False))
        ).rstrip()
        for line in table
    )

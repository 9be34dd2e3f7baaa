"""Fills the tables in docs/performance/ from results and models: `python -m benchmarks.pages`.

A table stands between `<!-- begin NAME -->` and `<!-- end -->`, and what is between is replaced. The names:

- `glance`: a line for each op and processor, training steps left out
- `steps`: training steps, taken apart
- `times OP`, `memory OP`: all cases of an op, a table for each machine; OP is KMeans or KMeans_grid too
- `floors OPS`: floors and predictions on an H200
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from benchmarks.floors import CARDS, digits, markdown_table
from benchmarks.floors.tables import FLOOR_TABLES
from benchmarks.glance import TITLES, glance_lines
from benchmarks.growth import WHOLE_MODES, is_yardstick, whole_rows
from benchmarks.kmeans import GRID
from benchmarks.report import ROOT, Row, last_runs, read_csv

PAGES = ROOT / "docs" / "performance"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(?<=<!-- begin )([^\n]+)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)
NOTHING = "No results yet."
CARD = "NVIDIA H200"
GRID_CASES = tuple(f"random-{rows}x{dims}-k{clusters}-" for rows, clusters, dims in GRID)

#: Modes of a training step whose share of the step with the reference is shown.
PARTS = ("data", "forward", "loss", "backward", "optimizer")


@cache
def read_results(folder: Path = RESULTS) -> tuple[Row, ...]:
    """Return the last rows of every case from all files of machines, which begin with the op."""
    paths = [path for path in sorted(folder.glob("*.csv")) if path.read_text().startswith("op,")]
    return tuple(row for path in paths for row in last_runs(read_csv(path)))


def describe(row: Row) -> str:
    """Return on what a row was measured."""
    dtype = "" if row.dtype == "float32" else f", {row.dtype}"
    kernels = "" if row.device == "cuda" else f", {name_kernels(row)}"
    return f"{row.machine}{kernels}, torch {row.torch.partition('+')[0]}{dtype}"


def name_kernels(row: Row) -> str:
    """Return the instruction set of the kernels and the number of threads, or the GPU."""
    if row.device == "cuda":
        return row.machine
    return f"{row.instruction_set.replace('AVX512', 'AVX-512')}, {row.threads} thread{'s' * (row.threads != 1)}"


def op_of(row: Row) -> str:
    """Return the op of a row; those of the grid of KMeans have a name to themselves."""
    return "KMeans_grid" if row.op == "KMeans" and row.case.startswith(GRID_CASES) else row.op


def by_machine(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield what some rows were measured on, with those rows."""
    for name, group in groupby(sorted(rows, key=describe), key=describe):
        yield name, list(group)


def shown(value: float | None) -> str:
    """Return a value with the digits that the files have, or nothing."""
    return "" if value is None else digits(value, 4)


def times_table(rows: Sequence[Row]) -> str:
    """Return times of ours, of rivals over ours, and of ours over yardstick and floor; nothing if none was timed.

    What is timed beside ours has a time of its own: it is ours with other arguments.
    """
    whole = [row for row in whole_rows(rows) if row.median_ms is not None]
    ours = {row.case: row for row in whole if row.provider == "ours"}
    others = list(dict.fromkeys(row.provider for row in whole if row.provider != "ours"))
    yardsticks = list(dict.fromkeys(row.provider for row in rows if is_yardstick(row)))
    modes = list(dict.fromkeys(WHOLE_MODES[row.mode] for row in ours.values()))
    titles = ["case", "mode", "ours, ms" if len(modes) > 1 else f"ours {', '.join(modes)}, ms"]
    titles += [f"{name}, ms" if name.startswith("ours") else f"{name} / ours" for name in others]
    titles += [*(f"ours / {name}" for name in yardsticks), "ours / floor"]
    lines = []
    for case, row in ours.items():
        found = {other.provider: other for other in whole if other.case == case}
        cells = [f"`{case}`", WHOLE_MODES[row.mode] if len(modes) > 1 else "", shown(row.median_ms)]
        for name in others:
            other = found.get(name)
            value = None if other is None else other.median_ms if name.startswith("ours") else other.per_ours
            cells.append(shown(value))
        lines.append([*cells, *[shown(row.per_yardstick)] * len(yardsticks), shown(row.per_floor)])
    return compact_table(titles, lines)


def memory_table(rows: Sequence[Row]) -> str:
    """Return what a call adds to the peak of memory; nothing if none was measured."""
    whole = [row for row in whole_rows(rows) if row.peak_extra_mb is not None or row.status.startswith("skipped")]
    providers = list(dict.fromkeys(row.provider for row in whole))
    lines = []
    for case in dict.fromkeys(row.case for row in whole):
        found = {row.provider: row for row in whole if row.case == case}
        if "ours" in found and found["ours"].peak_extra_mb is not None:
            cells = [
                "" if row is None else "skipped" if row.peak_extra_mb is None else shown(row.peak_extra_mb)
                for row in map(found.get, providers)
            ]
            lines.append([f"`{case}`", *cells])
    return compact_table(["case", *(f"{name}, MB" for name in providers)], lines)


def compact_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without columns that are empty; nothing without lines."""
    kept = [i for i in range(len(titles)) if any(line[i] for line in lines)]
    return markdown_table([titles[i] for i in kept], ([line[i] for i in kept] for line in lines)) if lines else ""


def machine_tables(make: Callable[[Sequence[Row]], str], op: str, rows: Sequence[Row]) -> str:
    """Return a table for each machine that has results of an op, under what it is."""
    tables = [(name, make(of_machine)) for name, of_machine in by_machine([row for row in rows if op_of(row) == op])]
    return "\n\n".join(f"{name}:\n\n{table}" for name, table in tables if table)


def glance(rows: Sequence[Row]) -> str:
    """Return a line for each op on each processor, in float32."""
    ops = [row for row in rows if row.dtype == "float32" and op_of(row) not in ("KMeans_grid", "training_step")]
    machines = {(name_kernels(row), row.machine) for row in ops}
    lines = []
    for _, of_machine in by_machine(ops):
        kernels, machine = name_kernels(of_machine[0]), of_machine[0].machine
        if sum(name == kernels for name, _ in machines) > 1:
            kernels = f"{kernels}, {machine}"
        lines += [(cells[0], kernels, *cells[1:]) for cells in glance_lines(of_machine)]
    lines.sort(key=lambda cells: cells[0].partition(",")[0].lower())
    return markdown_table((TITLES[0], "kernels for", *TITLES[1:]), lines) if lines else ""


def steps(rows: Sequence[Row]) -> str:
    """Return training steps: shares of the step with the reference, and the reference over ours."""
    titles = ("case", "kernels for", "step, ms", *PARTS, "loss and its backward")
    lines = []
    for _, of_machine in by_machine([row for row in rows if row.op == "training_step"]):
        for case in dict.fromkeys(row.case for row in of_machine):
            found = {(row.provider, row.mode): row for row in of_machine if row.case == case}
            whole = found["reference", "step"].median_ms or 0.0
            share = {mode: (row.median_ms or 0.0) / whole for (name, mode), row in found.items() if name == "reference"}
            shares = [*(share[part] for part in PARTS), share["loss"] + share["loss_backward"]]
            lines.append(
                [
                    f"`{case}`",
                    name_kernels(of_machine[0]),
                    shown(found["fused", "step"].median_ms),
                    *(f"{value:.1%}" for value in shares),
                    *(shown(found["reference", mode].per_ours) for mode in ("loss", "step")),
                ]
            )
    return markdown_table((*titles, "loss: reference / ours", "step: reference / ours"), lines) if lines else ""


def make_block(name: str, rows: Sequence[Row]) -> str:
    """Return what belongs into the block of a name."""
    kind, _, of = name.partition(" ")
    if kind == "floors" and of in FLOOR_TABLES:
        return FLOOR_TABLES[of](CARDS[CARD])
    if kind == "times":
        return machine_tables(times_table, of, rows)
    if kind == "memory":
        return machine_tables(memory_table, of, rows)
    if name in ("glance", "steps"):
        return glance(rows) if name == "glance" else steps(rows)
    raise ValueError(f"expected glance, steps, times OP, memory OP, or floors of {', '.join(FLOOR_TABLES)}, got {name}")


def fill(page: str, rows: Sequence[Row]) -> str:
    """Return a page with its blocks as they are to be."""
    return BLOCK.sub(
        lambda block: f"{block[1]}{block[2]}\n{make_block(block[1], rows) or NOTHING}\n\n",
        page,
    )


def main() -> int:
    """Fill all pages, and say which of them changed."""
    for path in sorted(PAGES.glob("*.md")):
        old = path.read_text()
        new = fill(old, read_results())
        if new != old:
            path.write_text(new)
            print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

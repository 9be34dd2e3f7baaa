"""Fills the tables in docs/performance/ from results and models: `python -m benchmarks.pages`.

A table stands between `<!-- begin NAME -->` and `<!-- end -->`, and what is between is replaced. The names:

- `glance`: a line for each op, beside each other what each kind of kernels takes; training steps left out
- `steps`: a line for each training step, likewise, and its parts
- `times OP`, `memory OP`: all cases of an op, a table for each machine; OP is KMeans or KMeans_grid too
- `floors OPS`: floors and predictions on an H200
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from benchmarks.floors import CARDS, digits, markdown_table
from benchmarks.floors.tables import FLOOR_TABLES
from benchmarks.glance import Headline, find_lines
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
    return kind_of(row) if row.device == "cuda" else f"{kind_of(row)}, {name_threads(row)}"


def kind_of(row: Row) -> str:
    """Return the instruction set of the kernels, or the GPU."""
    return row.machine if row.device == "cuda" else row.instruction_set.replace("AVX512", "AVX-512")


def name_threads(row: Row) -> str:
    """Return the number of threads in words."""
    return f"{row.threads} thread{'s' * (row.threads != 1)}"


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


def by_kind(rows: Sequence[Row]) -> tuple[str, dict[str, list[list[Row]]]]:
    """Return a caption and, by kind of kernels, the rows of each place that ran them, that with the most ops first."""
    places: dict[str, dict[tuple[str, int], list[Row]]] = {}
    for row in sorted(rows, key=lambda row: (kind_of(row), describe(row))):
        places.setdefault(kind_of(row), {}).setdefault((row.machine, row.threads), []).append(row)
    kinds = {
        kind: sorted(of_kind.values(), key=lambda rows: len({row.op for row in rows}), reverse=True)
        for kind, of_kind in places.items()
    }
    first = {kind: of_kind[0][0] for kind, of_kind in kinds.items()}
    return f"{'. '.join(f'{kind}: {row.machine}, {name_threads(row)}' for kind, row in first.items())}.", kinds


def glance(rows: Sequence[Row]) -> str:
    """Return a line for each op, in float32; a time from another place than the rest says from which."""
    ops = [row for row in rows if row.dtype == "float32" and op_of(row) not in ("KMeans_grid", "training_step")]
    caption, kinds = by_kind(ops)
    found: dict[tuple[str, str, str], dict[str, Headline]] = {}
    for kind, places in kinds.items():
        seen: set[str] = set()
        for place in places:
            new = [line for line in find_lines(place) if line.ours.op not in seen]
            seen |= {line.ours.op for line in new}
            for line in new:
                found.setdefault((line.ours.op, line.ours.case, line.ours.mode), {})[kind] = line
    titles, lines = ["op, case", "mode"], []
    for kind in kinds:
        titles += [f"{kind}, ms", f"{kind} / floor", f"best rival / {kind}"]
    for (op, case, mode), of_kinds in sorted(found.items(), key=lambda item: item[0][0].lower()):
        cells = [f"`{op}`, {case}", WHOLE_MODES[mode]]
        for kind, places in kinds.items():
            cells += cells_of(of_kinds.get(kind), places[0][0])
        lines.append([*cells, next(line.exponents for line in of_kinds.values())])
    return f"{caption}\n\n{compact_table([*titles, 'exponents of N: time, memory'], lines)}" if lines else ""


def cells_of(line: Headline | None, usual: Row) -> tuple[str, str, str]:
    """Return time, share of the floor and the best rival of a line."""
    if line is None:
        return "", "", ""
    ours = line.ours
    pairs = ((ours.machine, usual.machine), (name_threads(ours), name_threads(usual)))
    elsewhere = ", ".join(own for own, other in pairs if own != other)
    note = f" ({elsewhere})" if elsewhere else ""
    return shown(ours.median_ms) + note, shown(ours.per_floor), f"{shown(line.best.per_ours)}, {line.best.provider}"


def steps(rows: Sequence[Row]) -> str:
    """Return training steps: times, the rivals over ours, and the shares of the parts of our step."""
    caption, kinds = by_kind([row for row in rows if row.op == "training_step"])
    found: dict[str, dict[str, dict[tuple[str, str], Row]]] = {}
    for kind, places in kinds.items():
        for row in places[0]:
            found.setdefault(row.case, {}).setdefault(kind, {})[row.provider, row.mode] = row
    ratios = {"reference / ours": ("reference", "step"), "plain torch / ours": ("plain torch", "step")}
    ratios["reference / ours, the loss alone"] = ("reference", "loss")
    titles, lines = ["case"], []
    for kind in kinds:
        titles += [f"{kind}: {title}" for title in ("step, ms", *ratios)]
    for case, of_kinds in found.items():
        cells = [f"`{case}`"]
        for kind in kinds:
            modes = of_kinds.get(kind, {})
            cells += [shown(modes["fused", "step"].median_ms)] if modes else [""]
            cells += [shown(modes[key].per_ours) if key in modes else "" for key in ratios.values()]
        lines.append(cells + shares_of(next(iter(of_kinds.values()))))
    return f"{caption}\n\n{compact_table([*titles, *PARTS, 'loss and its backward'], lines)}" if lines else ""


def shares_of(modes: Mapping[tuple[str, str], Row]) -> list[str]:
    """Return the share of each part in our step, and that of the loss with its backward pass."""
    times = {mode: row.median_ms or 0.0 for (provider, mode), row in modes.items() if provider == "fused"}
    parts = [*(times[part] for part in PARTS), times["loss"] + times["loss_backward"]]
    return [f"{part / times['step']:.1%}" for part in parts]


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

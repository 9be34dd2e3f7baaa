"""Compares two results of ours: `python -m benchmarks.compare OLD.csv NEW.csv --slowdown 1.1`.

Times are compared by their ratios to the yardstick and to the rivals of the same run, not in milliseconds: between two
runs a machine drifts, by its clock, its neighbors, its temperature, which changes all times of a run alike and their
ratios hardly. The slowdown of a case is the median over all that both runs timed beside ours, so that one rival that
became faster or slower itself does not decide.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.growth import is_yardstick
from benchmarks.report import OURS, Row, last_runs, read_csv

Key = tuple[str, str, str, str, str, str]  # op, case, mode, dtype, device, threads
Comparison = tuple[Key, float | None, str]  # the slowdown, if there is one, and what is wrong, if anything


def by_key(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """Return the rows of every case and mode."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        key = row.op, row.case, row.mode, row.dtype, row.device, str(row.threads)
        found.setdefault(key, []).append(row)
    return found


def find_ours(rows: Sequence[Row]) -> Row | None:
    """Return the row of ours."""
    return next((row for row in rows if row.provider in OURS), None)


def relative_times(rows: Sequence[Row]) -> dict[str, float]:
    """Return the time of ours over that of everything else, by name."""
    ours = find_ours(rows)
    times = {
        row.provider: 1 / row.per_ours
        for row in rows
        if row.per_ours is not None and not row.provider.startswith(OURS) and not is_yardstick(row)
    }
    if ours and ours.per_yardstick is not None:
        times["the yardstick"] = ours.per_yardstick
    return times


def compare(old: Sequence[Row], new: Sequence[Row], allowed: float) -> Iterator[Comparison]:
    """Yield a comparison of every case and mode in which ours was timed before.

    Args:
        old: Rows of the earlier run.
        new: Rows of the later one.
        allowed: Slowdown up to which nothing is wrong; 1.1 is a tenth longer.
    """
    rows_now = by_key(new)
    # A provider that was not timed has one row, in the last of its modes.
    wrong = {(row.op, row.case, row.dtype): row.status for row in new if row.provider in OURS and row.status != "ok"}
    for key, before in by_key(old).items():
        ours = find_ours(before)
        if ours is None or ours.median_ms is None:
            continue
        now = find_ours(rows_now.get(key, []))
        if now is None or now.median_ms is None:
            yield key, None, wrong.get((ours.op, ours.case, ours.dtype), "missing")
            continue
        slowdown = find_slowdown(relative_times(before), relative_times(rows_now[key]))
        if slowdown is None:
            yield key, None, "nothing timed beside it in both"
        else:
            yield key, slowdown, f"slower than {allowed:g} times" if slowdown > allowed else ""


def find_slowdown(old: Mapping[str, float], new: Mapping[str, float]) -> float | None:
    """Return by how much ours takes longer than before, relative to what both runs timed; None if there is nothing."""
    common = old.keys() & new.keys()
    return median(new[name] / old[name] for name in common) if common else None


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print a line per case and mode, aligned."""
    lines = [("op", "case", "mode", "dtype", "device", "threads", "new / old", "")]
    lines += [(*key, f"{slowdown:.3f}" if slowdown else "", fault) for key, slowdown, fault in comparisons]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def read_run(path: Path, commit: str) -> list[Row]:
    """Return the last run of every case in a file among those of a commit, which may be shortened or empty for any."""
    return last_runs([row for row in read_csv(path) if row.commit.startswith(commit)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two files, print a table, return 1 if ours became slower than stated, wrong, or is missing."""
    parser = argparse.ArgumentParser("python -m benchmarks.compare", description="Compare two results of ours.")
    parser.add_argument("old", type=Path, metavar="OLD.csv")
    parser.add_argument("new", type=Path, metavar="NEW.csv", help="may be the same file")
    parser.add_argument("--slowdown", type=float, default=1.1, metavar="RATIO", help="the most allowed (default: 1.1)")
    for name in ("old", "new"):
        parser.add_argument(
            f"--{name}-commit", default="", metavar="COMMIT", help=f"of rows in {name.upper()}.csv (default: the last)"
        )
    options = parser.parse_args(arguments)
    if options.slowdown < 1:
        parser.error(f"--slowdown: expected 1 or more, got {options.slowdown:g}")
    for path in (options.old, options.new):
        if not path.is_file():
            parser.error(f"expected a CSV of results, got {path}")
    old, new = read_run(options.old, options.old_commit), read_run(options.new, options.new_commit)
    comparisons = list(compare(old, new, options.slowdown))
    if not comparisons:
        parser.error(f"OLD.csv: expected times of ours, got none in {options.old}")
    print_comparisons(comparisons)
    faults = sum(bool(fault) for _, _, fault in comparisons)
    print(f"{len(comparisons)} compared, {faults} at fault")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

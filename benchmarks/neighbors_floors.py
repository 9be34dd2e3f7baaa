"""Floors of nearest_neighbors on CUDA; see floors.py."""

from benchmarks.floors import Card, Work, digits, markdown_table
from benchmarks.mining_floors import PRECISIONS

INDEX_BYTES = 8

#: Queries, rows of the bank, features and k of the cases for CUDA.
CUDA_SEARCHES = (
    (256, 100_000, 128, 50),
    (1024, 1_000_000, 128, 50),
    (4096, 250_000, 256, 10),
    (16384, 100_000, 128, 256),
)


def search_work(rows: int, dims: int, dtype: str, *, candidates: int, k: int) -> Work:
    """Return the work of a search: one product; inputs read, results written."""
    p = PRECISIONS[dtype]
    moved = (rows + candidates) * dims * p.input_bytes + rows * k * (p.input_bytes + INDEX_BYTES)
    return Work({p.arithmetic: p.arithmetic.pieces * 2 * rows * candidates * dims}, moved)


def neighbors_floor_table(card: Card) -> str:
    """Return the floors, in Markdown."""
    lines = []
    for rows, candidates, dims, k in CUDA_SEARCHES:
        by_dtype = []
        for dtype in ("float32", "bfloat16"):
            work = search_work(rows, dims, dtype, candidates=candidates, k=k)
            by_dtype.append(
                (
                    digits(sum(work.flops.values()) / 1e9, 3),
                    digits(work.bytes / 1e6, 3),
                    digits(work.bytes / card.memory * 1e6, 2),
                    digits(work.seconds(card) * 1e6, 2),
                )
            )
        matrix = 2 * 4 * rows * candidates / card.memory
        cells = [f"{rows} x {candidates} x {dims}, {k}", *map(", ".join, zip(*by_dtype, strict=True))]
        lines.append([*cells, digits(matrix * 1e6, 2)])
    titles = ["B x M x D, k", "GFLOP", "MB", "reading, µs", "floor, µs", "a float32 matrix written and read, µs"]
    return markdown_table(titles, lines)

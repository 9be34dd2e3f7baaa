"""Floors and predictions of nearest_neighbors on CUDA; see floors/__init__.py."""

import math

from benchmarks.floors import (
    LAUNCH_SECONDS,
    TABLE_DTYPES,
    WARP_ROWS,
    Card,
    Work,
    digits,
    divide_up,
    markdown_table,
    predict_tiles,
)
from benchmarks.floors.mining import PRECISIONS

OPS = "nearest_neighbors"

INDEX_BYTES = 8

# How the kernels work; see csrc/neighbors/cuda/nearest_neighbors.cu.
COLUMNS = 128  # of a tile
LAUNCHES = 4  # a flag is zeroed, rows are prepared, lists are made, lists become results
SLOT_ROWS = 8  # rows whose lists a warp extends together
CANDIDATE_BYTES = 8
FLOAT64_LANES = 64  # multiply-adds of a multiprocessor in a clock

# Estimates from the code: instructions of a lane.
EPILOGUE_OPERATIONS = 4  # for every pair
LISTING_OPERATIONS = 230  # for a tile of which one of SLOT_ROWS rows lists something
COUNTING_PASSES = 15  # over a list, to find the k-th best score
RESULT_PASSES = 3  # over all lists of a query
COUNTING_OPERATIONS, PASS_OPERATIONS = 6, 12  # for a candidate, and for the sum over the warp

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


def list_operations(candidates: int, k: int, capacity: int) -> float:
    """Return the operations of lanes that a query's list takes while rows in random order go by."""
    always = min(candidates, SLOT_ROWS * COLUMNS * k)  # rows up to which some list of eight grows in every tile
    listing = always / COLUMNS + SLOT_ROWS * k * math.log(candidates / always)  # tiles
    listed = k * (1 + math.log(candidates / k)) if candidates > k else candidates
    shortened = max(0.0, (listed - k) / (capacity - k))
    counting = shortened * COUNTING_PASSES * (capacity * COUNTING_OPERATIONS + 32 * PASS_OPERATIONS)
    return 32 * LISTING_OPERATIONS * listing / SLOT_ROWS + counting


def predict_search(rows: int, dims: int, dtype: str, candidates: int, k: int, card: Card) -> tuple[float, str]:
    """Return the seconds of all kernels, launches included, and what limits the one that multiplies."""
    p, work = PRECISIONS[dtype], search_work(rows, dims, dtype, candidates=candidates, k=k)
    tiles = divide_up(candidates, COLUMNS)
    large = rows > 64 and divide_up(rows, 128) * tiles >= card.multiprocessors
    block_rows = 128 if large else 64
    row_blocks = divide_up(rows, block_rows)
    blocks_per_multiprocessor = 1 if large else 2 if p.input_bytes == 4 else 3
    splits = max(1, min(card.multiprocessors * blocks_per_multiprocessor // row_blocks, tiles))
    capacity = COLUMNS + 2 * k + 64

    element = dims * p.streamed_bytes  # of a row
    search, limit = predict_tiles(
        work,
        lane_operations=rows * candidates * EPILOGUE_OPERATIONS
        + rows * splits * list_operations(divide_up(candidates, splits), k, capacity),
        from_l2=row_blocks * tiles * (block_rows + COLUMNS) * element,
        from_shared=divide_up(rows, WARP_ROWS) * tiles * (WARP_ROWS + COLUMNS) * element,
        blocks=row_blocks * splits,
        card=card,
    )
    preparing = (rows + candidates) * dims * (p.input_bytes + p.streamed_bytes) / card.memory
    lists = rows * splits * capacity * CANDIDATE_BYTES * RESULT_PASSES / card.l2
    gathering = rows * k * dims * p.input_bytes / card.memory
    summing = rows * k * dims * 3 / (card.multiprocessors * FLOAT64_LANES * card.clock)
    return LAUNCHES * LAUNCH_SECONDS + preparing + search + lists + max(gathering, summing), limit


def floor_table(card: Card) -> str:
    """Return floors and predictions, in Markdown."""
    lines = []
    for rows, candidates, dims, k in CUDA_SEARCHES:
        matrix = 2 * 4 * rows * candidates / card.memory
        for dtype in TABLE_DTYPES:
            work = search_work(rows, dims, dtype, candidates=candidates, k=k)
            seconds, limit = predict_search(rows, dims, dtype, candidates, k, card)
            lines.append(
                (
                    f"{rows} x {candidates} x {dims}, {k}",
                    dtype,
                    digits(sum(work.flops.values()) / 1e9, 3),
                    digits(work.bytes / 1e6, 3),
                    digits(work.bytes / card.memory * 1e6, 2),
                    digits(work.seconds(card) * 1e6, 2),
                    digits(seconds * 1e6, 2),
                    limit,
                    digits(matrix * 1e6, 2),
                )
            )
    titles = ["B x M x D, k", "dtype", "GFLOP", "MB", "reading, µs", "floor, µs", "predicted, µs", "limited by"]
    titles.append("a float32 matrix written and read, µs")
    return markdown_table(titles, lines)

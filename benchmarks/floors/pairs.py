"""Floors and predictions of pair_information and pair_statistics on CUDA; see floors/__init__.py."""

import math

from benchmarks.floors import (
    FMA,
    LAUNCH_SECONDS,
    TABLE_DTYPES,
    Card,
    Work,
    digits,
    divide_up,
    markdown_table,
)

OPS = "pair_information, pair_statistics"

#: Of an element of the inputs. Products are multiply-adds of float32 whatever these are.
ELEMENT_BYTES = {"float32": 4, "float32-high": 4, "bfloat16": 2, "float16": 2}
RESULT_BYTES = 4  # of the information and of an element of a gradient

# How products are cut; see csrc/pairs/cuda/pairs_product.cuh.
TILE, PRODUCT_BLOCKS, MIN_PART_DEPTH = 64, 2, 256
# Of a thread: for 32 multiply-adds it loads 12 numbers, and for 512 it fetches and stores 16 and adds up 32 sums.
INSTRUCTIONS_PER_FMA = 1 + 12 / 32 + (16 * 6 + 32) / 512
# A load or store of a warp takes 128 bytes, also where lanes read the same.
SHARED_BYTES_PER_FMA = (12 / 32 + 16 / 512) * 128 / 32
L2_BYTES_PER_FMA = 2 * TILE * 4 / TILE**2

LOGITS_PER_MULTIPROCESSOR = 1 << 14  # of a block of pairs, in one matrix; see pair_information.cu
# For each logit of a row, five exponentials and what is around them, and numbers read and written; see pairs_rows.cuh.
INFORMATION_INSTRUCTIONS, INFORMATION_BYTES = 5 * 8 + 30, 12 * 4
# The same for shares and for the sums of their columns.
STATISTICS_INSTRUCTIONS, STATISTICS_BYTES = 8 + 25, 8 * 4

#: Rows of all pairs, clusters, features, and whether the rows' gradient is wanted, of the cases for CUDA.
CUDA_PAIRS = (
    (2048, 10, 384, False),
    (2048, 100, 384, False),
    (2048, 1000, 384, False),
    (2048, 1000, 768, False),
    (8192, 1000, 384, False),
    (2048, 1000, 256, True),
)


def information_work(rows: int, dims: int, dtype: str, *, clusters: int, want_rows: bool) -> Work:
    """Return the work of a call: three products, four with the rows' gradient; inputs read and gradients written."""
    size = ELEMENT_BYTES[dtype]
    read = (2 * (rows + clusters) * dims + clusters + rows // 2) * size
    written = (1 + (clusters + want_rows * rows) * dims) * RESULT_BYTES
    return Work({FMA: 2 * (3 + want_rows) * rows * clusters * dims}, read + written)


def statistics_work(rows: int, dims: int, dtype: str, *, clusters: int) -> Work:
    """Return the work of the statistics: one product; inputs read and sums, agreements and their mean written."""
    size = ELEMENT_BYTES[dtype]
    moved = (rows + clusters) * dims * size + (clusters + rows // 2 + 1) * RESULT_BYTES
    return Work({FMA: 2 * rows * clusters * dims}, moved)


def predict_product(
    lines: int, columns: int, depth: int, card: Card, *, products: int = 1, in_parts: bool = False
) -> tuple[float, str]:
    """Return the seconds of a launch of products of float32, and what limits it; with parts, of adding them up too."""
    tiles = divide_up(lines, TILE) * divide_up(columns, TILE)
    parts = 1
    if in_parts:
        parts = max(min(PRODUCT_BLOCKS * card.multiprocessors // tiles, divide_up(depth, MIN_PART_DEPTH)), 1)
    fmas = products * tiles * TILE**2 * depth
    seconds = {
        "lanes": fmas * INSTRUCTIONS_PER_FMA / card.lanes,
        "shared": fmas * SHARED_BYTES_PER_FMA / card.shared,
        "L2": fmas * L2_BYTES_PER_FMA / card.l2,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    per_multiprocessor = products * tiles * parts / card.multiprocessors
    adding = 0 if parts == 1 else LAUNCH_SECONDS + 2 * parts * lines * columns * 4 / card.l2
    return LAUNCH_SECONDS + seconds[limit] * math.ceil(per_multiprocessor) / per_multiprocessor + adding, limit


def blocks_of_rows(rows: int, clusters: int, card: Card) -> list[int]:
    """Return the rows of each block of pairs."""
    block = 2 * max(min(LOGITS_PER_MULTIPROCESSOR * card.multiprocessors // (2 * clusters), rows // 2), 1)
    return [min(block, rows - first) for first in range(0, rows, block)]


def predict_rows(rows: int, clusters: int, instructions: int, moved: int, card: Card) -> float:
    """Return the seconds of a launch that goes through the logits of a block, as if L2 held all of them."""
    return LAUNCH_SECONDS + rows * clusters * max(instructions / card.lanes, moved / card.l2)


def predict_information(rows: int, clusters: int, dims: int, want_rows: bool, card: Card) -> tuple[float, str]:
    """Return the seconds of a call in float32 with all launches, and what limits its products of logits."""
    seconds, limit = 4 * LAUNCH_SECONDS, ""  # two fills, the distribution's logarithms, the mean
    for block in blocks_of_rows(rows, clusters, card):
        logits, limit = predict_product(block, clusters, dims, card, products=2)
        seconds += logits + predict_rows(block, clusters, INFORMATION_INSTRUCTIONS, INFORMATION_BYTES, card)
        seconds += predict_product(clusters, dims, block, card, in_parts=True)[0]
        if want_rows:
            seconds += predict_product(block, dims, clusters, card, in_parts=True)[0]
    return seconds, limit


def predict_statistics(rows: int, clusters: int, dims: int, card: Card) -> float:
    """Return the seconds of a call in float32 with all launches."""
    seconds = 3 * LAUNCH_SECONDS  # two fills, the means
    for block in blocks_of_rows(rows, clusters, card):
        seconds += predict_product(block, clusters, dims, card)[0] + 2 * LAUNCH_SECONDS  # two add up columns
        seconds += predict_rows(block, clusters, STATISTICS_INSTRUCTIONS, STATISTICS_BYTES, card)
    return seconds


def floor_table(card: Card) -> str:
    """Return floors and predictions of both ops, in Markdown."""
    lines = []
    for rows, clusters, dims, want_rows in CUDA_PAIRS:
        seconds, limit = predict_information(rows, clusters, dims, want_rows, card)
        statistics = predict_statistics(rows, clusters, dims, card)
        for dtype in TABLE_DTYPES:
            work = information_work(rows, dims, dtype, clusters=clusters, want_rows=want_rows)
            teacher = statistics_work(rows, dims, dtype, clusters=clusters)
            lines.append(
                (
                    f"{rows} x {clusters} x {dims}{', rows too' if want_rows else ''}",
                    dtype,
                    digits(sum(work.flops.values()) / 1e9, 3),
                    digits(work.bytes / 1e6, 3),
                    digits(work.seconds(card) * 1e6, 2),
                    digits(seconds * 1e6, 2),
                    limit,
                    digits(teacher.seconds(card) * 1e6, 2),
                    digits(statistics * 1e6, 2),
                )
            )
    titles = ["R x K x E", "dtype", "GFLOP", "MB", "floor, µs", "predicted, µs", "limited by"]
    return markdown_table([*titles, "statistics: floor, µs", "predicted, µs"], lines)

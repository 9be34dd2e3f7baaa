"""Floors and predictions of kmeans_assign, kmeans_update and kmeans_seed on CUDA; see floors/__init__.py."""

import math

from benchmarks.floors import (
    BF16,
    FP16,
    LAUNCH_SECONDS,
    TABLE_DTYPES,
    TF32X3,
    TILE_COLUMNS,
    WARP_ROWS,
    Card,
    Work,
    digits,
    divide_up,
    markdown_table,
    predict_tiles,
)

OPS = "kmeans_assign, kmeans_update, kmeans_seed"

ARITHMETICS = {"float32": (TF32X3, 4), "float32-high": (TF32X3, 4), "bfloat16": (BF16, 2), "float16": (FP16, 2)}
LABEL_BYTES, UNIFORM_BYTES = 8, 8
INTEGER_BYTES = 2  # of an element of the rows, as kmeans_seed reads them again at every step on the CPU
EPILOGUE_OPERATIONS = 8  # of a lane for every row and centroid

# How the update is cut; see part_rows_of in csrc/kmeans/cuda/kmeans_update.cu.
MIN_PART_ROWS, PART_ROWS_PER_CLUSTER, MAX_PARTS = 256, 4, 1024

# How seeding is cut; see csrc/kmeans/cuda/kmeans_seed.cu. Rows of half precision are copied to float32.
SEED_QUAD_ROWS, SEED_GROUPS, SEED_VALUE_BYTES = 2, (4, 8), 4

#: Rows, centroids and features of the cases for CUDA.
CUDA_ASSIGNMENTS = ((20_000, 40, 64), (65_536, 100, 128), (65_536, 1000, 128), (1_000_000, 1000, 128))

#: Rows, centers and features of the cases of kmeans_seed for CUDA.
CUDA_SEEDINGS = ((20_000, 40, 64), (100_000, 1000, 128))


def assign_work(rows: int, dims: int, dtype: str, *, clusters: int) -> Work:
    """Return the work of an assignment: one product; inputs read, results written."""
    arithmetic, size = ARITHMETICS[dtype]
    moved = (rows + clusters) * dims * size + rows * (size + LABEL_BYTES)
    return Work({arithmetic: arithmetic.pieces * 2 * rows * clusters * dims}, moved)


def update_work(rows: int, dims: int, dtype: str, *, clusters: int) -> Work:
    """Return the work of an update: inputs read, sums written."""
    return Work({}, rows * (dims * ARITHMETICS[dtype][1] + LABEL_BYTES) + clusters * (4 * dims + LABEL_BYTES))


def seed_work(rows: int, dims: int, dtype: str, *, clusters: int, candidates: int) -> Work:
    """Return the work of choosing centers: rows multiplied with the candidates of all but the first, and read once."""
    arithmetic, size = ARITHMETICS[dtype]
    moved = rows * dims * size + clusters * (candidates * UNIFORM_BYTES + LABEL_BYTES)
    return Work({arithmetic: arithmetic.pieces * 2 * rows * dims * (clusters - 1) * candidates}, moved)


def seed_reads(rows: int, dims: int, dtype: str, *, clusters: int) -> Work:
    """Return what seeding reads and writes where no cache holds the rows: all of them for every center."""
    return Work({}, clusters * (rows * dims * ARITHMETICS[dtype][1] + LABEL_BYTES))


def predict_assign(rows: int, clusters: int, dims: int, dtype: str, card: Card) -> tuple[float, str]:
    """Return the seconds of both kernels, launches included, and what limits the second one."""
    work = assign_work(rows, dims, dtype, clusters=clusters)
    tiles = divide_up(clusters, TILE_COLUMNS)
    block_rows = 128 if rows > 128 * card.multiprocessors else 64
    row_blocks = divide_up(rows, block_rows)
    row_bytes = dims * ARITHMETICS[dtype][1]
    padded = assign_work(rows, dims, dtype, clusters=tiles * TILE_COLUMNS)
    seconds, limit = predict_tiles(
        padded,
        lane_operations=rows * tiles * TILE_COLUMNS * EPILOGUE_OPERATIONS,
        from_l2=row_blocks * tiles * (block_rows + TILE_COLUMNS) * row_bytes,
        from_shared=divide_up(rows, WARP_ROWS) * tiles * (WARP_ROWS + TILE_COLUMNS) * row_bytes,
        blocks=row_blocks,
        card=card,
    )
    memory = work.bytes / card.memory
    return 2 * LAUNCH_SECONDS + max(seconds, memory), limit if seconds > memory else "memory"


def predict_update(rows: int, clusters: int, dims: int, dtype: str, card: Card) -> float:
    """Return the seconds of both kernels: the parts' sums are written and read besides; latencies are left out."""
    part_rows = max(MIN_PART_ROWS, PART_ROWS_PER_CLUSTER * clusters, divide_up(rows, MAX_PARTS))
    part_bytes = divide_up(rows, part_rows) * clusters * (dims + 1) * 4
    return 2 * LAUNCH_SECONDS + (update_work(rows, dims, dtype, clusters=clusters).bytes + 2 * part_bytes) / card.memory


def predict_seed(rows: int, clusters: int, dims: int, dtype: str, card: Card) -> float:
    """Return the seconds of all kernels for 2 + log K candidates.

    Those that measure distances read the rows once for a group of candidates, subtract, multiply and add in two
    instructions, and load a chunk of a candidate from the cache for some rows at a time. The others read distances and
    write them and integers. What the last block does is left out.
    """
    candidates = 2 + int(math.log(clusters))
    group = SEED_GROUPS[candidates > SEED_GROUPS[0]]
    groups = divide_up(candidates, group)
    row_bytes, state = dims * SEED_VALUE_BYTES, SEED_VALUE_BYTES + LABEL_BYTES  # a distance and an integer
    measured = max(
        rows * (groups * row_bytes + state + candidates * SEED_VALUE_BYTES) / card.memory,
        rows * dims * groups * group * 2 / card.lanes,
        rows * row_bytes * groups * (1 + group / SEED_QUAD_ROWS) / card.shared,
    )
    center = 2 * LAUNCH_SECONDS + measured + rows * (SEED_VALUE_BYTES + state) / card.memory
    size = ARITHMETICS[dtype][1]
    prepared = dims * size + (0 if size == SEED_VALUE_BYTES else row_bytes)
    return clusters * center + LAUNCH_SECONDS + rows * prepared / card.memory


def floor_table(card: Card) -> str:
    """Return floors and predictions of the three ops, in Markdown."""
    lines = []
    for rows, clusters, dims in CUDA_ASSIGNMENTS:
        for dtype in TABLE_DTYPES:
            work = assign_work(rows, dims, dtype, clusters=clusters)
            seconds, limit = predict_assign(rows, clusters, dims, dtype, card)
            lines.append(
                (
                    f"{rows} x {clusters} x {dims}",
                    dtype,
                    digits(sum(work.flops.values()) / 1e9, 3),
                    digits(work.bytes / 1e6, 3),
                    digits(work.seconds(card) * 1e6, 2),
                    digits(seconds * 1e6, 2),
                    limit,
                    digits(update_work(rows, dims, dtype, clusters=clusters).seconds(card) * 1e6, 2),
                    digits(predict_update(rows, clusters, dims, dtype, card) * 1e6, 2),
                    digits(seed_reads(rows, dims, dtype, clusters=clusters).seconds(card) * 1e3, 2),
                    digits(predict_seed(rows, clusters, dims, dtype, card) * 1e3, 2),
                )
            )
    titles = [
        "N x K x D",
        "dtype",
        "GFLOP",
        "MB",
        "floor, µs",
        "predicted, µs",
        "limited by",
        "update: floor, µs",
        "predicted, µs",
        "seed: floor, ms",
        "predicted, ms",
    ]
    return markdown_table(titles, lines)

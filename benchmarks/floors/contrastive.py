"""Floors and predictions of fused_contrastive_loss on CUDA; see floors/__init__.py.

`rows` are those of a case, of one view: with two views all 2 B = N rows are compared with each other, with a queue B
rows with the queue. Multiplied are rows with rows, into scores, and backward also weights with rows, into gradients.
"""

from collections import Counter
from dataclasses import dataclass

from benchmarks.floors import (
    BF16,
    CUDA_SIZES,
    FP16,
    FP16X3,
    LAUNCH_SECONDS,
    TABLE_DTYPES,
    TF32,
    TF32X3,
    TILE_COLUMNS,
    WARP_ROWS,
    Arithmetic,
    Card,
    Work,
    digits,
    divide_up,
    markdown_table,
    predict_tiles,
)

OPS = "fused_contrastive_loss"

ROW_RESULT_BYTES = 100  # about what scales, sums, log-sums and coefficients of a row take, written and read
SUM_BYTES = 4  # of an element of a gradient before it goes through the normalization
CHUNK_FEATURES = 128  # of the gradients that a block of the backward kernel sums up
SCORE_OPERATIONS = 12  # of a lane for every pair of rows forward: scaling, and an exponential of eight instructions
WEIGHT_OPERATIONS = 18  # of a lane for every pair backward: that, slopes of row and column, pieces of the weight
LOAD_OPERATIONS = 3 / 32  # of a lane for every pair, feature and part backward: one load, two conversions, for 32
CONVERSIONS = (WARP_ROWS + TILE_COLUMNS) / (WARP_ROWS * TILE_COLUMNS)  # of float32 to tf32, for every pair and feature


@dataclass(frozen=True)
class Precision:
    """How rows of one dtype are kept, and how they are multiplied into scores and into gradients."""

    scores: Arithmetic
    gradients: Arithmetic
    input_bytes: int  # of an element
    packed_bytes: int  # of an element in the packed rows, all parts
    parts: int

    @property
    def score_conversions(self) -> float:
        """Return the operations of a lane for every pair and feature that go before the products."""
        return CONVERSIONS if self.scores is TF32 else 0.0


#: By dtype of the benchmark, without class vectors; with them half precision is split in two float16 parts as well.
PRECISIONS = {
    "float32": Precision(FP16X3, TF32X3, 4, 4, parts=2),
    "float32-high": Precision(TF32, TF32, 4, 4, parts=1),
    "bfloat16": Precision(BF16, TF32, 2, 2, parts=1),
    "float16": Precision(FP16, TF32, 2, 2, parts=1),
}


def count_flops(pairs: int, dims: int, *products: Arithmetic) -> Counter[Arithmetic]:
    """Return the operations of some products, each of so many pairs of rows."""
    flops: Counter[Arithmetic] = Counter()
    for arithmetic in products:
        flops[arithmetic] += arithmetic.pieces * 2 * pairs * dims
    return flops


def packing_bytes(rows: int, dims: int, p: Precision, queue: int) -> int:
    """Return what both passes move: all rows read, packed and read again, and results of every anchor."""
    return (2 * rows + queue) * (dims * (p.input_bytes + 2 * p.packed_bytes) + ROW_RESULT_BYTES)


def loss_work(rows: int, dims: int, dtype: str, queue: int = 0) -> Work:
    """Return the work of the forward pass: one product."""
    p = PRECISIONS[dtype]
    pairs = rows * queue or 4 * rows * rows
    return Work(count_flops(pairs, dims, p.scores), packing_bytes(rows, dims, p, queue))


def gradient_work(rows: int, dims: int, dtype: str, queue: int = 0) -> Work:
    """Return the work of the backward pass to all anchors: two products; sums written and read, gradients written."""
    p = PRECISIONS[dtype]
    pairs = rows * queue or 4 * rows * rows
    anchors = rows if queue else 2 * rows
    moved = packing_bytes(rows, dims, p, queue) + anchors * dims * (2 * SUM_BYTES + 2 * p.input_bytes)
    return Work(count_flops(pairs, dims, p.scores, p.gradients), moved)


def predict_forward(rows: int, dims: int, dtype: str, card: Card) -> tuple[float, str]:
    """Return the seconds of both forward kernels for two views, launches included, and what limits the second one."""
    p, count = PRECISIONS[dtype], 2 * rows
    large = divide_up(count, 128) >= max(3, card.multiprocessors // 5)
    block_rows = 128 if large else 64
    row_blocks, tiles = divide_up(count, block_rows), divide_up(count, TILE_COLUMNS)
    splits = max(1, min(card.multiprocessors * (2 if large else 3) // row_blocks, 16, tiles))
    element = dims * p.packed_bytes
    summing, limit = predict_tiles(
        loss_work(rows, dims, dtype),
        lane_operations=count * count * (SCORE_OPERATIONS + dims * p.score_conversions),
        from_l2=row_blocks * tiles * (block_rows + TILE_COLUMNS) * element,
        from_shared=divide_up(count, WARP_ROWS) * tiles * (WARP_ROWS + TILE_COLUMNS) * element,
        blocks=row_blocks * splits,
        card=card,
    )
    return 2 * LAUNCH_SECONDS + count * dims * (p.input_bytes + p.packed_bytes) / card.memory + summing, limit


def predict_backward(rows: int, dims: int, dtype: str, card: Card) -> tuple[float, str]:
    """Return the seconds of the three backward kernels for two views, and what limits the second one.

    It computes the scores again for every chunk of features.
    """
    p, count, work = PRECISIONS[dtype], 2 * rows, gradient_work(rows, dims, dtype)
    chunks = divide_up(dims, CHUNK_FEATURES)
    row_blocks = tiles = divide_up(count, TILE_COLUMNS)
    splits = max(1, min(2 * card.multiprocessors // chunks // row_blocks, 16, tiles))
    of_scores = chunks * (WEIGHT_OPERATIONS + dims * p.score_conversions)
    element = dims * p.packed_bytes
    of_columns = row_blocks * tiles * TILE_COLUMNS * element  # copied once more for the gradients
    summing, limit = predict_tiles(
        Work(count_flops(count * count, dims, *[p.scores] * chunks, p.gradients), work.bytes),
        lane_operations=count * count * (of_scores + dims * p.parts * LOAD_OPERATIONS),
        from_l2=chunks * row_blocks * tiles * 2 * TILE_COLUMNS * element + of_columns,
        from_shared=divide_up(count, WARP_ROWS)
        * tiles
        * (chunks * (WARP_ROWS + TILE_COLUMNS) + TILE_COLUMNS)
        * element,
        blocks=row_blocks * splits * chunks,
        card=card,
    )
    around = work.bytes + count * dims * (splits - 1) * 2 * SUM_BYTES
    return 3 * LAUNCH_SECONDS + around / card.memory + summing, limit


def floor_table(card: Card) -> str:
    """Return floors and predictions of the plain form for the cases of CUDA, in Markdown."""
    titles = ["2B x D", "dtype", "GFLOP", "MB"]
    for mode in ("forward", "backward"):
        titles += [f"floor of {mode}, µs", "predicted, µs", "limited by"]
    lines = []
    for count, dims in CUDA_SIZES:
        size = count // 2, dims
        for dtype in TABLE_DTYPES:
            works = loss_work(*size, dtype), gradient_work(*size, dtype)
            cells = [
                f"{count} x {dims}",
                dtype,
                digits(sum(sum(work.flops.values()) for work in works) / 1e9, 3),
                digits(sum(work.bytes for work in works) / 1e6, 3),
            ]
            for work, predict in zip(works, (predict_forward, predict_backward), strict=True):
                seconds, limit = predict(*size, dtype, card)
                cells += [digits(work.seconds(card) * 1e6, 2), digits(seconds * 1e6, 2), limit]
            lines.append(cells)
    return markdown_table(titles, lines)

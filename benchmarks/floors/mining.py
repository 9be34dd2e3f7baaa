"""Floors and predictions of batch_hard_mining and fused_hsd_loss on CUDA; see floors/__init__.py."""

from dataclasses import dataclass

from benchmarks.floors import (
    BF16,
    CUDA_SIZES,
    FP16,
    FP16X3,
    LAUNCH_SECONDS,
    TABLE_DTYPES,
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

OPS = "batch_hard_mining, fused_hsd_loss"

ROW_RESULT_BYTES = 100  # about what lists, indices, distances or slopes of a row take, written and read
EPILOGUE_OPERATIONS = 10  # of a lane for every pair of rows
SCAN_OPERATIONS = 40  # of a lane for every pair that a block of the backward kernel looks at


@dataclass(frozen=True)
class Precision:
    """How rows of one dtype are kept and multiplied."""

    arithmetic: Arithmetic
    input_bytes: int  # of an element
    stored_bytes: int  # of an element in the prepared rows, all copies
    streamed_bytes: int  # of an element as the products read it


#: By dtype of the benchmark. Torch's precision does not matter to ours: it never shows in the result.
PRECISIONS = {
    "float32": Precision(FP16X3, 4, 8, 4),
    "float32-high": Precision(FP16X3, 4, 8, 4),
    "bfloat16": Precision(BF16, 2, 2, 2),
    "float16": Precision(FP16, 2, 2, 2),
}


def mining_work(rows: int, dims: int, dtype: str) -> Work:
    """Return the work of the forward pass: two products; inputs read, prepared rows written and read, results."""
    p = PRECISIONS[dtype]
    moved = 2 * rows * dims * (p.input_bytes + p.stored_bytes + p.streamed_bytes) + rows * ROW_RESULT_BYTES
    return Work({p.arithmetic: p.arithmetic.pieces * 4 * rows * rows * dims}, moved)


def gradient_work(rows: int, dims: int, dtype: str) -> Work:
    """Return the work of the backward pass to the student: both inputs read, one gradient written, pairs read."""
    return Work({}, 3 * rows * dims * PRECISIONS[dtype].input_bytes + rows * ROW_RESULT_BYTES)


def predict_forward(rows: int, dims: int, dtype: str, card: Card) -> tuple[float, str]:
    """Return the seconds of both forward kernels, launches included, and what limits the second one."""
    p, work = PRECISIONS[dtype], mining_work(rows, dims, dtype)
    large = divide_up(rows, 128) >= max(3, card.multiprocessors // 5)
    block_rows = 128 if large else 64
    row_blocks, tiles = divide_up(rows, block_rows), divide_up(rows, TILE_COLUMNS)
    blocks_per_multiprocessor = 1 if large else 2 if p.input_bytes == 4 else 3
    splits = max(1, min(card.multiprocessors * blocks_per_multiprocessor // row_blocks, 16, tiles))

    element = dims * p.streamed_bytes  # of a row; columns count twice, teacher and student
    mining, limit = predict_tiles(
        work,
        lane_operations=rows * rows * EPILOGUE_OPERATIONS,
        from_l2=row_blocks * tiles * (block_rows + 2 * TILE_COLUMNS) * element,
        from_shared=divide_up(rows, WARP_ROWS) * tiles * (WARP_ROWS + 2 * TILE_COLUMNS) * element,
        blocks=row_blocks * splits,
        card=card,
    )
    preparing = 2 * rows * dims * (p.input_bytes + p.stored_bytes) / card.memory
    return 2 * LAUNCH_SECONDS + preparing + mining, limit


def predict_backward(rows: int, dims: int, dtype: str, card: Card) -> float:
    """Return the seconds of the backward kernel: every block looks through the 2 N pairs; hubs would take longer."""
    looked_at = 2 * rows * divide_up(rows, 8 if rows <= 8192 else 32)
    return LAUNCH_SECONDS + max(
        gradient_work(rows, dims, dtype).bytes / card.memory,
        looked_at * 8 / card.l2,
        looked_at * SCAN_OPERATIONS / card.lanes,
    )


def floor_table(card: Card) -> str:
    """Return floors and predictions of fused_hsd_loss for the cases of CUDA, in Markdown."""
    titles = [
        "N x D",
        "dtype",
        "GFLOP",
        "MB",
        "floor, µs",
        "predicted forward, µs",
        "limited by",
        "predicted backward, µs",
    ]
    lines = []
    for rows, dims in CUDA_SIZES:
        for dtype in TABLE_DTYPES:
            work = mining_work(rows, dims, dtype)
            forward, limit = predict_forward(rows, dims, dtype, card)
            lines.append(
                (
                    f"{rows} x {dims}",
                    dtype,
                    digits(sum(work.flops.values()) / 1e9, 3),
                    digits(work.bytes / 1e6, 3),
                    digits(work.seconds(card) * 1e6, 2),
                    digits(forward * 1e6, 2),
                    limit,
                    digits(predict_backward(rows, dims, dtype, card) * 1e6, 2),
                )
            )
    return markdown_table(titles, lines)

"""Floors and predictions of diffused_neighbor_gather on CUDA; see floors/__init__.py.

The search is that of nearest_neighbors, once for each step; what is added here is one launch that draws and gathers.
"""

from benchmarks.floors import LAUNCH_SECONDS, TABLE_DTYPES, Card, Work, digits, markdown_table
from benchmarks.floors.mining import PRECISIONS
from benchmarks.floors.neighbors import INDEX_BYTES, search_work

OPS = "diffused_neighbor_gather"

# Instructions of a lane for four elements: ten rounds of Philox at eight, two Box-Muller transforms (logarithm, root,
# sine and cosine), loads, sums and stores.
QUAD_OPERATIONS = 10 * 8 + 2 * 65 + 20

#: Queries, rows of the bank, features, neighbors and samples of the cases for CUDA.
CUDA_GATHERS = (
    (256, 0, 256, 0, 1),
    (65536, 0, 256, 0, 1),
    (256, 100_000, 128, 50, 1),
    (1024, 1_000_000, 128, 50, 1),
    (4096, 250_000, 256, 10, 8),
)


def gather_work(rows: int, dims: int, dtype: str, *, neighbors: int, samples: int) -> Work:
    """Return the work of one step after the search: candidates and rows read, samples and indices written."""
    element = PRECISIONS[dtype].input_bytes
    candidates = rows * neighbors * (element + INDEX_BYTES)
    read = rows * dims * (samples if neighbors else 1) * element
    return Work({}, candidates + read + rows * samples * (dims * element + INDEX_BYTES))


def sampling_work(
    rows: int, dims: int, dtype: str, *, candidates: int, neighbors: int, samples: int, num_steps: int = 1
) -> Work:
    """Return the work of a call, searches included: first the queries', in further steps those of what was drawn."""
    gather = gather_work(rows, dims, dtype, neighbors=neighbors, samples=samples)
    if neighbors == 0:
        return gather
    queries = rows + (num_steps - 1) * rows * samples
    search = search_work(queries, dims, dtype, candidates=candidates, k=neighbors)
    return Work(search.flops, search.bytes + gather.bytes)


def predict_gather(rows: int, dims: int, dtype: str, *, neighbors: int, samples: int, card: Card) -> tuple[float, str]:
    """Return the seconds of drawing and gathering, launch included, and what limits it apart from that."""
    seconds = {
        "memory": gather_work(rows, dims, dtype, neighbors=neighbors, samples=samples).bytes / card.memory,
        "instructions": rows * samples * dims / 4 * QUAD_OPERATIONS / card.lanes,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    return LAUNCH_SECONDS + seconds[limit], limit


def floor_table(card: Card) -> str:
    """Return floors and predictions, in Markdown."""
    lines = []
    for rows, candidates, dims, neighbors, samples in CUDA_GATHERS:
        for dtype in TABLE_DTYPES:
            whole = sampling_work(rows, dims, dtype, candidates=candidates, neighbors=neighbors, samples=samples)
            gather = gather_work(rows, dims, dtype, neighbors=neighbors, samples=samples)
            seconds, limit = predict_gather(rows, dims, dtype, neighbors=neighbors, samples=samples, card=card)
            lines.append(
                (
                    f"{rows} x {candidates} x {dims}, {neighbors}, {samples}",
                    dtype,
                    digits(whole.seconds(card) * 1e6, 2),
                    digits(gather.bytes / 1e6, 3),
                    digits(gather.seconds(card) * 1e6, 2),
                    digits(seconds * 1e6, 2),
                    limit,
                )
            )
    titles = ["B x M x D, k, S", "dtype", "floor with search, µs", "MB gathered", "floor, µs", "predicted, µs"]
    return markdown_table([*titles, "limited by"], lines)

"""The tables of floors and predictions of all ops on CUDA, by the ops that they are of."""

from collections.abc import Callable, Mapping

from benchmarks.floors import Card
from benchmarks.floors.contrastive import contrastive_floor_table
from benchmarks.floors.gather import gather_floor_table
from benchmarks.floors.kmeans import kmeans_floor_table
from benchmarks.floors.mining import mining_floor_table
from benchmarks.floors.neighbors import neighbors_floor_table
from benchmarks.floors.sinkhorn import sinkhorn_floor_table

FLOOR_TABLES: Mapping[str, Callable[[Card], str]] = {
    "batch_hard_mining, fused_hsd_loss": mining_floor_table,
    "diffused_neighbor_gather": gather_floor_table,
    "fused_contrastive_loss": contrastive_floor_table,
    "kmeans_assign, kmeans_update, kmeans_seed": kmeans_floor_table,
    "nearest_neighbors": neighbors_floor_table,
    "sinkhorn_knopp": sinkhorn_floor_table,
}

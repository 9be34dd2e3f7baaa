"""The native library: each op's entry for direct calls, of the same name and arguments as the op in torch.ops."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

class BuildInfo(TypedDict):
    torch_version: str
    cuda_version: str | None
    cuda_architectures: list[str]
    compiler: str
    devices: list[str]
    cpu_capability: str  # the instruction set that runs
    processor_capabilities: list[str]  # those that this processor can run, the best last
    torch_capability: str  # the one that torch runs, or that ATEN_CPU_CAPABILITY asked for

def build_info() -> BuildInfo: ...
def pair_information(
    rows: Tensor,
    weight: Tensor,
    teacher_rows: Tensor,
    teacher_weight: Tensor,
    distribution: Tensor,
    pair_weights: Tensor,
    beta: float = 0.6,
    temperature: float = 0.1,
    want_rows: bool = True,
) -> tuple[Tensor, Tensor, Tensor]: ...
def pair_statistics(rows: Tensor, weight: Tensor, temperature: float = 0.1) -> tuple[Tensor, Tensor, Tensor]: ...
def reuse_memory(on: bool) -> None: ...
def augment_views(
    images: Sequence[Tensor],
    size: Sequence[int],
    boxes: Tensor | None = None,
    flips: Tensor | None = None,
    matrices: Tensor | None = None,
    steps: Tensor | None = None,
    strengths: Tensor | None = None,
    blur_kernel: int = 23,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor: ...
def batch_hard_mining(
    teacher: Tensor, student: Tensor, normalize: bool = True, first_row: int = 0, num_rows: int | None = None
) -> tuple[Tensor, ...]: ...
def diffused_neighbor_gather(
    query: Tensor,
    bank: Tensor,
    seed: Tensor,
    num_neighbors: int = 10,
    temperature: float = 0.1,
    noise_std: float = 0.001,
    num_steps: int = 1,
    num_samples: int = 1,
    exclude: Tensor | None = None,
    valid: Tensor | None = None,
    normalize: bool = False,
) -> tuple[Tensor, ...]: ...
def fused_contrastive_loss(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float = 0.5,
    hardness: float = 0.0,
    debias: float = 0.0,
    class_a: Tensor | None = None,
    class_b: Tensor | None = None,
    class_temperature: float = 1.0,
    queue: Tensor | None = None,
    class_queue: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    keep_gradient: bool = False,
) -> tuple[Tensor, ...]: ...
def fused_hsd_loss(
    teacher: Tensor, student: Tensor, temperature: float = 0.5, normalize: bool = True, reduction: str = "mean"
) -> tuple[Tensor, ...]: ...
def kmeans_assign(features: Tensor, centroids: Tensor, metric: str = "euclidean") -> tuple[Tensor, Tensor]: ...
def kmeans_seed(
    features: Tensor, uniform: Tensor, metric: str = "euclidean", weights: Tensor | None = None
) -> Tensor: ...
def kmeans_step(
    features: Tensor, centroids: Tensor, metric: str = "euclidean"
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def kmeans_update(features: Tensor, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]: ...
def nearest_neighbors(
    query: Tensor, bank: Tensor, k: int, exclude: Tensor | None = None, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]: ...
def sinkhorn_knopp(
    scores: Tensor,
    epsilon: float = 0.05,
    num_iters: int = 3,
    sample_marginals: Tensor | None = None,
    cluster_marginals: Tensor | None = None,
    tolerance: float | None = None,
    differentiable: bool = False,
) -> tuple[Tensor, ...]: ...

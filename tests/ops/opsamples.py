"""Sample inputs of every op, on which tests/ops/test_all_ops.py runs its suite."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepclust_ext.reference.augment_views import STEPS


@dataclass
class Sample:
    """One call: tensors that may require gradients, the names of the last ones if passed by keyword, and options.

    `constant` says that the results are constants to autograd, `emptied` which of the tensors may be empty, if not all.
    """

    name: str
    tensors: tuple[Tensor, ...]
    options: dict[str, Any] = field(default_factory=dict)
    keywords: tuple[str, ...] = ()
    constant: bool = False
    emptied: tuple[int, ...] | None = None

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "Sample":
        """Return the sample with other tensors."""
        return replace(self, tensors=tensors)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Sample":
        """Return the sample with every tensor changed."""
        return self.with_tensors(tuple(change(tensor) for tensor in self.tensors))

    def without_rows(self) -> "Sample":
        """Return the sample with every tensor empty that may be."""
        places = range(len(self.tensors)) if self.emptied is None else self.emptied
        return self.with_tensors(tuple(x[:0] if place in places else x for place, x in enumerate(self.tensors)))

    @property
    def args(self) -> tuple[Tensor, ...]:
        """Positional arguments."""
        return self.tensors[: len(self.tensors) - len(self.keywords)]

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments."""
        return dict(zip(self.keywords, self.tensors[len(self.args) :], strict=True)) | self.options


def feature_pairs(dtype: torch.dtype, device: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield named teacher and student batches: random, clustered, offset, at sizes that leave ragged tiles."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pairs = {f"random {n}x{d}": (normal(n, d), normal(n, d)) for n, d in ((1, 3), (2, 5), (37, 16), (131, 67))}
    centers = normal(6, 24)[torch.randint(6, (150,), generator=generator)]
    for name, spread, step in (("aligned", 0.3, 0.1), ("overlapping", 1.0, 1.0)):
        teacher = centers + spread * normal(150, 24)
        pairs[f"{name} clusters"] = (teacher, teacher + step * normal(150, 24))
    pairs["offset"] = (normal(65, 9) + 20, normal(65, 9) + 20)
    for name, (teacher, student) in pairs.items():
        yield name, teacher.to(dtype).to(device), student.to(dtype).to(device)


def batch_hard_mining_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Every batch, with and without normalization."""
    return [
        Sample(f"{name}, normalize={normalize}", (teacher, student), {"normalize": normalize})
        for name, teacher, student in feature_pairs(dtype, device)
        for normalize in (True, False)
    ]


def diffused_neighbor_gather_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Queries themselves, neighbors, walks, several samples of each, excluded and invalid rows, normalization."""
    generator = torch.Generator().manual_seed(0)

    def sample(rows: int, candidates: int, dims: int, **options: Any) -> Sample:
        tensors = tuple(
            torch.randn(count, dims, generator=generator, dtype=torch.float64).to(dtype).to(device)
            for count in (rows, candidates)
        )
        name = f"{rows}x{candidates}x{dims} {[*options]}"
        if "bank" in options:  # not read, and so without a gradient
            return Sample(name, tensors[:1], options)
        return Sample(name, tensors, options)

    exclude = torch.randint(-1, 90, (40,), generator=generator).to(device)
    valid = (torch.arange(90) % 3 > 0).to(device)
    no_bank = torch.empty(0, device=device)
    return [
        sample(3, 5, 4),
        sample(2, 7, 5, num_neighbors=3, num_samples=4, noise_std=0.5, normalize=True),
        sample(5, 9, 6, num_neighbors=4, num_samples=2, num_steps=3),
        sample(4, 3, 6, num_samples=2, normalize=True, noise_std=0.1, num_neighbors=0, bank=no_bank),
        sample(5, 5, 67, num_neighbors=0, num_samples=3, noise_std=1.0, bank=no_bank),
        sample(33, 130, 67, num_neighbors=40, temperature=0.01, num_samples=3, normalize=True),
        sample(40, 90, 24, num_steps=2, num_samples=2, exclude=exclude, valid=valid, normalize=True),
        sample(40, 90, 9, num_neighbors=200, temperature=1.0, exclude=exclude, valid=valid, noise_std=0.0),
        sample(37, 50, 16, num_samples=2, num_steps=3),
        sample(6, 2, 3, num_steps=3, num_samples=2, exclude=torch.zeros(6, dtype=torch.int64, device=device)),
    ]


def fused_hsd_loss_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Every batch, and every option on one of them."""
    samples = [Sample(name, (teacher, student), {}) for name, teacher, student in feature_pairs(dtype, device)]
    teacher, student = samples[2].tensors
    variants: list[dict[str, Any]] = [
        {"reduction": "none"},
        {"reduction": "sum", "temperature": 0.05},
        {"normalize": False, "temperature": 5.0},
    ]
    return samples + [Sample(str(options), (teacher, student), options) for options in variants]


def fused_contrastive_loss_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Every form: two views and queue, with and without class vectors, every option, ragged sizes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)

    def assignments(count: int) -> Tensor:
        return normal(count, 5).double().softmax(1).to(dtype)

    def views(count: int, dims: int) -> tuple[Tensor, Tensor]:
        first = normal(count, dims)
        return first, first + normal(count, dims)

    mild = {"hardness": 0.5, "class_temperature": 0.3}
    sharp = {"temperature": 0.07, "hardness": 1.0, "debias": 0.1}
    small_queue, small_classes = (normal(7, 4),), (assignments(3), assignments(3))
    queue, classes = (normal(150, 24),), (assignments(70), assignments(70))
    class_names, queue_names = ("class_a", "class_b"), ("queue",)
    all_names = (*class_names, *queue_names, "class_queue")
    samples = [
        Sample("2x5", views(2, 5)),
        Sample("3x4, all", (*views(3, 4), *small_classes, *small_queue, assignments(7)), sharp, all_names),
        Sample("37x16", views(37, 16)),
        Sample("3x4, classes", (*views(3, 4), *small_classes), mild, class_names),
        Sample("131x67", views(131, 67)),
    ]
    pair = views(70, 24)
    variants: list[dict[str, Any]] = [
        {"reduction": "none", "temperature": 0.1},
        {"reduction": "sum", "temperature": 0.01},
        {"hardness": 2.0, "temperature": 0.05, "reduction": "none"},
        {"hardness": 1.0, "debias": 0.1},
        {"normalize": False, "temperature": 20.0, "debias": 0.01},
        {"normalize": False, "temperature": 0.3, "hardness": 0.5},
    ]
    samples += [Sample(str(options), pair, options) for options in variants]
    samples += [
        Sample("70x24, classes", (*pair, *classes), {"hardness": 1.0, "class_temperature": 0.1}, class_names),
        Sample("70x24, queue", (*pair, *queue), {"temperature": 0.07, "reduction": "none"}, queue_names),
        Sample("70x24, all", (*pair, *classes, *queue, assignments(150)), sharp, all_names),
    ]
    return samples


def sinkhorn_knopp_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """One problem and batches of them, cosines and scores far apart, marginals, early stops."""
    generator = torch.Generator().manual_seed(0)

    def cosines(*shape: int) -> Tensor:
        rows, columns = (
            torch.nn.functional.normalize(torch.randn(*size, 8, generator=generator, dtype=torch.float64), dim=-1)
            for size in (shape[:-1], (*shape[:-2], shape[-1]))
        )
        return (rows @ columns.mT).to(dtype).to(device)

    def shares(*shape: int) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1
        drawn[..., 1] = 0
        return drawn.to(device)

    def sample(name: str, scores: Tensor, **options: Any) -> Sample:
        return Sample(name, (scores,), {"differentiable": True} | options)

    return [
        sample("5x3", cosines(5, 3)),
        sample("2x3x7x4", cosines(2, 3, 7, 4), epsilon=0.2, num_iters=4),
        sample("37x5", cosines(37, 5), num_iters=10),
        sample("6x4, marginals", cosines(6, 4), sample_marginals=shares(6), cluster_marginals=shares(4), epsilon=0.3),
        sample("131x67", cosines(131, 67)),
        sample("epsilon 0.01", cosines(70, 20), epsilon=0.01, num_iters=5),
        sample("far apart", 10 * cosines(70, 20), epsilon=0.05),
        sample("3x70x9, marginals", cosines(3, 70, 9), sample_marginals=shares(3, 70), cluster_marginals=shares(3, 9)),
        sample("tolerance", cosines(2, 65, 33), tolerance=0.01, num_iters=50, epsilon=0.1),
        sample("constant", cosines(20, 6)[:, :1].expand(-1, 6)),
    ]


def kmeans_assign_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Both metrics; few centroids and many, ragged sizes, clusters, data far from the origin."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = ((1, 1, 3), (2, 5, 7), (37, 10, 16), (131, 67, 33), (70, 150, 65))
    pairs = {f"{n}x{k}x{d}": (normal(n, d), normal(k, d)) for n, k, d in sizes}
    centers = normal(20, 24)
    pairs["clusters"] = (centers.repeat(5, 1) + 0.3 * normal(100, 24), centers)
    pairs["offset"] = (normal(65, 9) + 20, normal(7, 9) + 20)
    return [
        Sample(
            f"{name}, {metric}",
            (features.to(dtype).to(device), centroids.to(dtype).to(device)),
            {"metric": metric},
            constant=True,
            emptied=(0,),
        )
        for name, (features, centroids) in pairs.items()
        for metric in ("euclidean", "cosine")
    ]


def kmeans_seed_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Both metrics, weights; ragged sizes, clusters, data far from the origin, one candidate and many."""
    generator = torch.Generator().manual_seed(0)

    def sample(
        name: str, rows: int, dims: int, clusters: int, candidates: int, *, weighted: bool = False, **options: Any
    ) -> Sample:
        features = torch.randn(rows, dims, generator=generator, dtype=torch.float64)
        if name == "clusters":
            features = 0.3 * features + 2 * torch.randn(9, dims, generator=generator).double()[torch.arange(rows) % 9]
        if name == "offset":
            features += 20
        options["uniform"] = torch.rand(clusters, candidates, generator=generator, dtype=torch.float64).to(device)
        if weighted:
            options["weights"] = torch.randint(4, (rows,), generator=generator).double().to(device)
        name = f"{name} {rows}x{dims}, {clusters} of {candidates} {[*options]}"
        return Sample(name, (features.to(dtype).to(device),), options, constant=True, emptied=())

    return [
        sample("random", 5, 3, 2, 2),
        sample("random", 37, 7, 6, 3, weighted=True),
        sample("random", 70, 16, 9, 5, metric="cosine"),
        sample("random", 131, 33, 12, 1),
        sample("clusters", 150, 24, 9, 4, weighted=True, metric="cosine"),
        sample("clusters", 150, 24, 9, 4),
        sample("offset", 65, 9, 7, 6, weighted=True),
    ]


def nearest_neighbors_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Ragged sizes, few candidates and many, excluded and invalid rows; cosines of both signs, so none are equal."""
    generator = torch.Generator().manual_seed(0)

    def sample(rows: int, candidates: int, dims: int, k: int, **options: Any) -> Sample:
        query, bank = (
            torch.randn(count, dims, generator=generator, dtype=torch.float64).to(dtype).to(device)
            for count in (rows, candidates)
        )
        name = f"{rows}x{candidates}x{dims}, k={k} {[*options]}"
        return Sample(name, (query, bank), {"k": k} | options, constant=True)

    exclude = torch.randint(-1, 150, (70,), generator=generator).to(device)
    valid = (torch.arange(150) % 3 > 0).to(device)
    return [
        sample(1, 2, 3, 1),
        sample(2, 7, 5, 3),
        sample(37, 65, 16, 10),
        sample(131, 300, 67, 20),
        sample(70, 150, 24, 10, exclude=exclude),
        sample(70, 150, 24, 10, exclude=exclude, valid=valid),
        sample(9, 700, 33, 100),
    ]


def augment_views_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Every smooth step, crops and sizes at which torch's resizing rounds little even in float32, moves by halves."""
    generator = torch.Generator().manual_seed(0)

    def images(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)

    def steps(*rows: dict[str, float]) -> dict[str, Tensor]:
        numbers = torch.tensor([[STEPS.index(name) for name in row] for row in rows], device=device)
        return {"steps": numbers, "strengths": torch.tensor([[*row.values()] for row in rows], device=device)}

    jitter = steps(
        {"brightness": 0.7, "contrast": 1.3, "saturation": 0.6, "hue": 0.1, "none": 0.0},
        {"hue": -0.4, "contrast": 0.8, "blur": 1.1, "gray": 0.0, "brightness": 1.2},
        {"saturation": 1.4, "hue": 0.3, "sharpness": 0.3, "autocontrast": 0.0, "contrast": 0.5},
    )
    crops = {
        "boxes": torch.tensor([[2, 3, 16, 8], [0, 0, 32, 24], [5, 1, 4, 16]], device=device),
        "flips": torch.tensor([True, False, True], device=device),
    }
    moves = torch.tensor([[[1.0, 0.25, 0.5], [-0.125, 1.0, -1.5]], [[-0.5, 0.0, 0.0], [0.0, 2.0, 0.25]]], device=device)
    pair = steps({"rotate": 90.0, "shift_x": 3.0, "gamma": 0.7}, {"shift_y": -2.0, "gamma": 2.5, "sharpness": 0.5})
    edges = steps({"solarize": 0.5}, {"posterize": 4.0})

    def sample(name: str, views: Tensor, **options: Any) -> Sample:
        return Sample(name, (views,), options, constant=True)

    return [
        sample("plain", images(2, 3, 6, 5), size=(6, 5)),
        sample("jitter", images(3, 3, 32, 24), size=(16, 8), **crops, **jitter),
        sample("normalized", images(3, 2, 16, 12), size=(8, 8), mean=[0.5, 0.4], std=[0.25, 0.5]),
        sample("one pixel", images(3, 3, 32, 24), size=(1, 1), **crops, **jitter, blur_kernel=3),
        sample("moved", images(2, 1, 16, 8), size=(16, 8), matrices=moves, **pair),
        sample("one channel", images(3, 1, 32, 24), size=(16, 8), **crops, **jitter, blur_kernel=41),
        sample("13 channels", images(3, 13, 32, 24), size=(64, 8), **crops, **jitter),
        sample("edges", images(2, 3, 9, 7), size=(9, 7), **edges),
        sample("channels last", images(3, 3, 32, 24), size=(16, 8), **crops, **jitter, channels_last=True),
    ]


def pair_heads(dtype: torch.dtype, device: str) -> Iterator[tuple[str, dict[str, Any], tuple[Tensor, ...]]]:
    """Yield named options and the tensors of pair_information at ragged sizes: diffuse and sharp shares."""
    generator = torch.Generator().manual_seed(0)
    for pairs, clusters, dims, temperature in ((1, 2, 3, 0.5), (5, 7, 16, 0.1), (37, 70, 9, 0.1), (40, 131, 33, 0.05)):
        shapes = ((2 * pairs, dims), (clusters, dims)) * 2
        directions = [normalize(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
        shares = [torch.rand(size, generator=generator, dtype=torch.float64) for size in (clusters, pairs)]
        tensors = [*directions, 1e-3 + shares[0] / shares[0].sum(), shares[1]]
        name = f"{pairs}x{clusters}x{dims}"
        yield name, {"temperature": temperature}, tuple(tensor.to(dtype).to(device) for tensor in tensors)


def pair_information_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """With the published beta and 1, with and without the gradient by the rows."""
    return [
        Sample(
            f"{name}, beta={beta}, want_rows={want_rows}",
            tensors,
            {**options, "beta": beta, "want_rows": want_rows},
            constant=True,
            emptied=(0, 2, 5),
        )
        for name, options, tensors in pair_heads(dtype, device)
        for beta, want_rows in ((0.6, True), (1.0, False))
    ]


def pair_statistics_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Of the teachers."""
    return [
        Sample(name, tensors[2:4], options, constant=True, emptied=(0,))
        for name, options, tensors in pair_heads(dtype, device)
    ]


#: By op: the functions above that are called OP_samples.
SAMPLE_INPUTS: dict[str, Callable[[torch.dtype, str], list[Sample]]] = {
    name.removesuffix("_samples"): function for name, function in sorted(globals().items()) if name.endswith("_samples")
}

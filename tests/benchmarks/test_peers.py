"""Rivals that are measured on a GPU alone: what they compute, how they are called, and what a failing one leads to."""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from benchmarks import __main__ as command_line
from benchmarks import kmeans, page
from benchmarks.floors.cpu import Rates
from benchmarks.harness import Case, Provider, admit, load_op, providers_of
from benchmarks.ops import fused_contrastive_loss as contrastive
from benchmarks.ops import nearest_neighbors as neighbors
from benchmarks.report import Row, Setting, read_csv
from deepclust_ext import _extension

SETTING = Setting("m", "AVX2", "cpu", 1, "2", "c", "float32")


def case_for_cuda(op: str, name: str, *rivals: str, **changes: Any) -> Case:
    """Return a case with some of its rivals alone."""
    module = load_op(op)
    (case,) = (case for case in module.CUDA_CASES if case.name == name)
    others = set(providers_of(module, case)) - set(rivals)
    return dataclasses.replace(case, skip=dict.fromkeys(others, "skipped: not the question"), **changes)


def install(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Put stand-ins where packages would be, names of modules with __ for dots."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name.replace("__", "."), module)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_by_attention_is_nt_xent(dtype: torch.dtype) -> None:
    """On the CPU attention has no gradient, and is not compiled here; there are rows beyond its blocks of 128."""

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        return contrastive.attention_loss(z_a, z_b, contrastive.all_others(2 * len(z_a), z_a.device))

    case = case_for_cuda("fused_contrastive_loss", "plain-128x128", "flex_attention", modes=("forward",))
    assert "flex_attention" in case.rivals
    case = dataclasses.replace(case, rivals={"flex_attention": Provider(lambda: loss)})
    inputs = tuple(x.detach() for x in case.inputs(dtype, "cpu", rows=100))
    fit, excluded = admit(load_op("fused_contrastive_loss"), case, inputs)
    assert list(fit) == ["flex_attention"], excluded


@pytest.mark.parametrize("name", ["flex_attention", "memeff", "siglip-kernel, sigmoid loss"])
def test_kernels_for_a_gpu_are_rivals_of_its_plain_cases_alone(name: str) -> None:
    module = load_op("fused_contrastive_loss")
    assert {case.distribution for case in module.CUDA_CASES if name in case.rivals} == {"plain"}
    assert all("lightly" in case.rivals for case in module.CUDA_CASES if case.distribution == "plain")
    assert not any(name in case.rivals for case in (*module.CASES, *module.SERIES))


def admit_rival(name: str, dtype: torch.dtype) -> str | None:
    """Return what is wrong with a rival of the contrastive loss, of 40 rows on the CPU, or None."""
    case = case_for_cuda("fused_contrastive_loss", "plain-128x128", name)
    fit, excluded = admit(load_op("fused_contrastive_loss"), case, case.inputs(dtype, "cpu", rows=40))
    return None if list(fit) == [name] else excluded[name]


class InfoNCE(torch.nn.Module):
    """A stand-in for memeff's MemoryEfficientQwen3Loss, as its documentation has it."""

    def __init__(self, temperature: float, margin: float, use_qq_negatives: bool, stable: bool) -> None:
        super().__init__()
        assert margin >= 2  # which leaves no negative out
        self.temperature, self.use_qq_negatives, self.stable = temperature, use_qq_negatives, stable

    def forward(self, query: Tensor, document: Tensor) -> Tensor:
        query, document = normalize(query, dim=1), normalize(document, dim=1)
        scores = query @ document.T / self.temperature
        of_queries = (query @ query.T / self.temperature).fill_diagonal_(-torch.inf)
        negatives = torch.cat([scores, of_queries], dim=1) if self.use_qq_negatives else scores
        loss = (negatives.logsumexp(dim=1) - scores.diag()).mean()
        return scale_gradient(loss, (len(query) * self.temperature) ** 0.5 if self.stable else 1.0)


def scale_gradient(loss: Tensor, factor: float) -> Tensor:
    return loss.detach() + factor * (loss - loss.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_info_nce_both_ways_is_nt_xent(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, memeff=SimpleNamespace(MemoryEfficientQwen3Loss=InfoNCE))
    assert admit_rival("memeff", dtype) is None
    for changes in ({"stable": True}, {"use_qq_negatives": False}):
        wrong = lambda changes=changes, **options: InfoNCE(**{**options, **changes})  # noqa: E731
        install(monkeypatch, memeff=SimpleNamespace(MemoryEfficientQwen3Loss=wrong))
        fault = admit_rival("memeff", torch.float32)
        assert fault is not None
        assert fault.startswith("WRONG")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sigmoid_loss_is_checked_by_its_own_definition(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def fused_siglip_loss(
        img_features: Tensor, txt_features: Tensor, log_temperature: Tensor, bias: Tensor, factor: float = 1.0
    ) -> Tensor:
        scores = img_features.float() @ txt_features.float().T * log_temperature.exp() + bias
        loss = binary_cross_entropy_with_logits(scores, torch.eye(len(scores)), reduction="sum") / len(scores)
        return scale_gradient(loss, factor).to(img_features.dtype)

    name = "siglip-kernel, sigmoid loss"
    install(monkeypatch, siglip_kernel=SimpleNamespace(fused_siglip_loss=fused_siglip_loss))
    assert admit_rival(name, dtype) is None
    install(monkeypatch, siglip_kernel=SimpleNamespace(fused_siglip_loss=partial(fused_siglip_loss, factor=3.0)))
    fault = admit_rival(name, dtype)
    assert fault is not None
    assert fault.startswith("WRONG: gradient of input 0 is off by 1.9e+00")


@pytest.mark.parametrize("name", ["memeff", "siglip-kernel, sigmoid loss"])
def test_a_missing_loss_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, memeff=None, siglip_kernel=None)
    package = name.split(",")[0].replace("-", "_")
    assert admit_rival(name, torch.float32) == f"not installed: import of {package} halted; None in sys.modules"


def lloyd(rows: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Return the centers after so many of Lloyd's iterations, by torch alone; no cluster may become empty."""
    for _ in range(iterations):
        labels = torch.cdist(rows, centers).argmin(dim=1)
        centers = torch.stack([rows[labels == cluster].mean(dim=0) for cluster in range(len(centers))])
    return centers


def measure_kmeans(monkeypatch: pytest.MonkeyPatch, name: str) -> Row:
    """Measure ours and a rival of the GPU on the CPU; return the rival's row."""
    monkeypatch.setattr(kmeans, "PROVIDERS", {"ours": kmeans.load_ours, name: kmeans.CUDA_PROVIDERS[name]})
    ours, rival = kmeans.measure(SETTING, 0, None, rows=2000, clusters=5, dims=8)
    assert (ours.status, rival.provider) == ("ok", name)
    return rival


@pytest.mark.parametrize("gpu", [False, True])
def test_flash_kmeans_is_called_as_its_documentation_says(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def batch_kmeans_Euclid(  # noqa: N802
        x: Tensor,  # (1, N, D)
        n_clusters: int,
        max_iters: int = 100,
        tol: float = 0.0,
        init_centroids: Tensor | None = None,  # (1, K, D)
        verbose: bool = False,
    ) -> tuple[Tensor, Tensor, int]:
        assert init_centroids is not None
        assert init_centroids.shape == (1, n_clusters, x.shape[2])
        centers = lloyd(x[0], init_centroids[0], max_iters)[None]
        return torch.cdist(x, centers).argmin(dim=2).int(), centers, max_iters

    kernels = {"batch_kmeans_Euclid": batch_kmeans_Euclid} if gpu else {}
    fallback = {} if gpu else {"batch_kmeans_Euclid_torch_native": batch_kmeans_Euclid}
    install(
        monkeypatch,
        flash_kmeans=SimpleNamespace(**kernels),
        flash_kmeans__torch_fallback=SimpleNamespace(**fallback),
    )
    if not gpu:
        monkeypatch.setitem(kmeans.CUDA_PROVIDERS, "flash-kmeans", kmeans.PROVIDERS["flash-kmeans"])
    assert measure_kmeans(monkeypatch, "flash-kmeans").status == "ok"


def test_kmeans_of_flashlib_is_called_as_its_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_kmeans(
        x: Tensor,  # (N, D)
        n_clusters: int,
        *,
        max_iters: int = 100,
        tol: float = 0.0,
        init_centroids: Tensor,  # (1, K, D)
    ) -> tuple[Tensor, Tensor, int]:
        assert init_centroids.shape == (1, n_clusters, x.shape[1])
        init_centroids[0] = lloyd(x, init_centroids[0], max_iters)  # its two buffers are these and another
        return torch.cdist(x, init_centroids[0]).argmin(dim=1).int(), init_centroids[0], max_iters

    install(monkeypatch, flashlib=SimpleNamespace(flash_kmeans=flash_kmeans))
    assert measure_kmeans(monkeypatch, "flashlib").status == "ok"


def test_kmeans_of_cuvs_is_called_as_its_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    synchronized = []

    def fit(
        params: SimpleNamespace, x: Tensor, centroids: Tensor, *, resources: SimpleNamespace
    ) -> tuple[Tensor, float, int]:
        assert params.init_method == "Array"
        assert params.tol > 0
        centroids[:] = lloyd(x, centroids, params.max_iter)
        return centroids, 0.0, params.max_iter + 1

    install(
        monkeypatch,
        cuvs=ModuleType("cuvs"),
        cuvs__common=SimpleNamespace(Resources=lambda: SimpleNamespace(sync=lambda: synchronized.append(1))),
        cuvs__cluster=ModuleType("cuvs.cluster"),
        cuvs__cluster__kmeans=SimpleNamespace(KMeansParams=SimpleNamespace, fit=fit),
    )
    assert measure_kmeans(monkeypatch, "cuVS").status == "ok"
    assert synchronized


def test_a_rival_that_fails_is_named_and_the_others_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*inputs: Tensor, **options: Any) -> Any:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setitem(kmeans.CUDA_PROVIDERS, "flash-kmeans", lambda iterations: fail)
    assert measure_kmeans(monkeypatch, "flash-kmeans").status == "failed: RuntimeError: no kernel image"

    case = case_for_cuda("nearest_neighbors", "bank100000-k50-256x128", "topk", "broken")
    case = dataclasses.replace(case, rivals={"broken": Provider(lambda: fail)})
    module = load_op("nearest_neighbors")
    inputs = neighbors.query_and_bank(300, 20, 16)
    fit, excluded = admit(module, case, inputs)
    assert list(fit) == ["topk"]
    assert excluded["broken"] == "failed: RuntimeError: no kernel image"
    monkeypatch.setitem(module.PROVIDERS, "ours", Provider(lambda: fail))
    with pytest.raises(RuntimeError, match="no kernel image"):
        admit(module, dataclasses.replace(case, skip={}), inputs)


def exact_search(bank: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    assert bank.dtype == query.dtype
    return (query @ bank.T).topk(k, dim=1)


class FlatIndex:
    """A stand-in for faiss' GpuIndexFlatIP, taking tensors in float32 as faiss.contrib.torch_utils has it."""

    def __init__(self, resources: object, dims: int) -> None:
        self.dims = dims

    def add(self, rows: Tensor) -> None:
        assert (rows.dtype, rows.shape[1]) == (torch.float32, self.dims)
        self.rows = rows

    def search(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return exact_search(self.rows, query, k)


def install_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = SimpleNamespace(StandardGpuResources=object, GpuIndexFlatIP=FlatIndex)
    faiss.contrib = SimpleNamespace(torch_utils=ModuleType("faiss.contrib.torch_utils"))
    install(
        monkeypatch, faiss=faiss, faiss__contrib=faiss.contrib, faiss__contrib__torch_utils=faiss.contrib.torch_utils
    )


def install_cuvs(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(dataset: Tensor, metric: str, *, resources: object) -> Tensor:
        assert metric == "inner_product"
        return dataset

    def search(
        index: Tensor, queries: Tensor, k: int, neighbors: Tensor, distances: Tensor, *, resources: object
    ) -> None:
        assert index.dtype in (torch.float32, torch.float16)
        assert (distances.dtype, neighbors.dtype) == (torch.float32, torch.int64)
        distances[:], neighbors[:] = exact_search(index, queries, k)

    install(
        monkeypatch,
        cuvs=ModuleType("cuvs"),
        cuvs__common=SimpleNamespace(Resources=lambda: SimpleNamespace(sync=lambda: None)),
        cuvs__neighbors=SimpleNamespace(brute_force=SimpleNamespace(build=build, search=search)),
    )


def install_flashlib(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_knn(x: Tensor, c: Tensor, k: int) -> tuple[Tensor, Tensor]:
        assert x.dtype == c.dtype
        cosines, indices = exact_search(c, x, k)
        return 2 - 2 * cosines.float(), indices.int()  # squared distances of rows of norm 1

    install(monkeypatch, flashlib=SimpleNamespace(flash_knn=flash_knn))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "put"), [("faiss-gpu", install_faiss), ("cuVS", install_cuvs), ("flashlib", install_flashlib)]
)
def test_search_on_a_gpu_is_called_as_its_documentation_says(
    name: str, put: Callable[[pytest.MonkeyPatch], None], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch)
    case = case_for_cuda("nearest_neighbors", "bank100000-k50-256x128", name)
    inputs = tuple(x.to(dtype) for x in neighbors.query_and_bank(300, 20, 16))
    fit, excluded = admit(load_op("nearest_neighbors"), case, inputs)
    assert list(fit) == [name], excluded


def test_faiss_for_the_cpu_is_no_rival_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, faiss=ModuleType("faiss"))
    assert measure_kmeans(monkeypatch, "faiss-gpu").status == "not installed: faiss with GPU support"
    case = case_for_cuda("nearest_neighbors", "bank100000-k50-256x128", "faiss-gpu")
    _, excluded = admit(load_op("nearest_neighbors"), case, neighbors.query_and_bank(300, 20, 16))
    assert excluded["faiss-gpu"] == "not installed: faiss with GPU support"


def test_kmeans_on_a_gpu_has_sizes_and_rivals_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[int, ...]] = []

    def measure(setting: Setting, seconds: float, rates: Rates | None, *size: int) -> list[Row]:
        measured.append(size)
        return []

    monkeypatch.setattr(kmeans, "measure", measure)
    list(kmeans.measure_series(dataclasses.replace(SETTING, device="cuda"), 0, None))
    assert measured == [(20_000, 40, 64)]
    list(kmeans.measure_series(dataclasses.replace(SETTING, device="cuda"), 1, None))
    assert measured[1:] == [(20_000, 40, 64), (65_536, 100, 128), (65_536, 1000, 128), (1_000_000, 1000, 128)]


@pytest.fixture
def disguised_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line believe in a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset({"cpu", "cuda"}))


@pytest.mark.usefixtures("disguised_cpu")
def test_run_on_a_gpu_measures_kmeans_in_float32_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(setting: Setting, seconds: float, rates: Rates | None) -> list[Row]:
        assert rates is None
        return [Row("KMeans", "tiny", "ours", "forward", **dataclasses.asdict(setting), status="ok")]

    monkeypatch.setattr(command_line, "op_names", list)
    monkeypatch.setattr(command_line, "BEYOND_OPS", {"KMeans": measure})
    assert command_line.main(["--device", "cuda", "--quick", "--out", str(tmp_path)]) == 0
    (row,) = read_csv(tmp_path / "nvidia-h200.csv")
    assert (row.op, row.device, row.dtype) == ("KMeans", "cuda", "float32")


@pytest.mark.usefixtures("disguised_cpu")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda", "--op", "training_step"], "training_step: measured on the CPU only"),
        (["--device", "cuda", "--op", "KMeans", "--dtype", "bfloat16"], "KMeans: measured in float32 only"),
    ],
)
def test_what_cannot_be_measured_on_a_gpu_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = command_line.make_parser()
    with pytest.raises(SystemExit):
        command_line.check_options(parser, parser.parse_args(arguments))
    assert message in capsys.readouterr().err
    command_line.check_options(parser, parser.parse_args(["--device", "cuda", "--op", "KMeans"]))


def test_versions_of_peers_are_found_under_any_name_of_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"faiss": ["faiss-gpu-cu12"]})
    monkeypatch.setattr(metadata, "version", lambda name: f"1 of {name}")
    versions = page.peer_versions("cuda")
    assert versions["faiss-gpu-cu12"] == "1 of faiss-gpu-cu12"
    assert "faiss" not in versions
    assert versions["siglip_kernel"] == "not installed"
    assert "siglip_kernel" not in page.peer_versions("cpu")

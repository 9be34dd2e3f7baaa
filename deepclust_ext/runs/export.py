"""A trained network as one file that works without this package: ONNX, a program of torch.export, or weights."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule
from tqdm import tqdm

import deepclust_ext
from deepclust_ext.data.views import ResizeView
from deepclust_ext.inference.trained import Trained, center_shares
from deepclust_ext.runs.folder import Run
from deepclust_ext.training.files import check_writable, replacing

#: How far a row or share of the file may lie from ours.
TOLERANCE = 1e-4
#: Images at a time of that comparison.
BATCHES = (1, 2, 7)
#: Bytes that a file of ONNX, a protocol buffer, cannot reach.
ONNX_LIMIT = 2**31
#: Where a program of torch.export keeps what is known of it, and the key of ONNX's and safetensors' metadata.
FACTS = "deepclust_ext.json"


Function = Callable[[Tensor], tuple[Tensor, Tensor]]


class ExportedNetwork(nn.Module):
    """What :class:`~deepclust_ext.inference.Trained` does, except for resizing, as plain modules on the CPU in float32.

    Args:
        trained: The method; its weights are copied, contiguous and in evaluation mode.

    Raises:
        ValueError: If its test view is of another kind than "resize", or a part stays in training mode.
    """

    mean: Tensor | None
    std: Tensor | None
    centers: Tensor | None

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        view = trained.test_view
        if view is not None and not isinstance(view, ResizeView):
            raise ValueError(
                f"test_view: expected 'resize' or none, got {type(view).__name__}, which cannot be written"
            )
        self.network = copy.deepcopy(trained.method.inference_network()).float().cpu().requires_grad_(False)
        for name, values in (("mean", view and view.mean), ("std", view and view.std)):
            self.register_buffer(name, None if values is None else torch.tensor(values, device="cpu").view(-1, 1, 1))
        centers = trained.centers
        self.register_buffer("centers", None if centers is None else centers.detach().float().cpu().clone())
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data = tensor.data.contiguous()  # channels last is neither a layout of safetensors nor of a program
        self.eval()
        if training := [name for name, part in self.network.named_modules() if part.training]:
            raise ValueError(
                f"backbone: expected evaluation mode after eval(), got training mode in {training[0] or 'all of it'}, "
                f"which would make rows depend on their batch or on chance"
            )

    def forward(
        self,
        images: Tensor,  # (B, C, S, S) float32 in [0, 1]
    ) -> tuple[Tensor, Tensor]:
        """Return unit rows (B, D) and shares (B, K), both NaN for an image that is not finite.

        Other runtimes may lose NaN, for example in max-pooling.
        """
        finite = images.isfinite().flatten(1).all(dim=1, keepdim=True)
        views = images if self.mean is None or self.std is None else (images - self.mean) / self.std
        rows, *heads = self.network(views)
        shares = heads[0] if self.centers is None else center_shares(rows, self.centers)
        return rows.where(finite, torch.nan), shares.where(finite, torch.nan)


def check_target(path: Path, format: str, *, overwrite: bool = False) -> None:
    """Require that a file of a format can be written, before anything is computed.

    Raises:
        FileExistsError: If there is a file and it must not be overwritten.
        ImportError: If the format needs a package that is missing; the message names the extra.
        NotADirectoryError: If something else lies where the file's folder has to be.
        PermissionError: If nothing can be written there.
        ValueError: If the format is unknown, or the file's name ends otherwise.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    kind = FORMATS[format]
    if missing := [name for name in kind.packages if find_spec(name) is None]:
        raise ImportError(
            f"format: {format} needs {', '.join(kind.packages)}, and there is no {', '.join(missing)}; "
            f"pip install 'deepclust_ext[export]'"
        )
    if path.suffix != kind.suffix:
        raise ValueError(f"out: expected a name that ends in {kind.suffix} for {format}, got {path}")
    if path.is_dir():
        raise ValueError(f"out: expected a file, got the folder {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"out: expected a new file, got {path}, which exists; --overwrite replaces it")
    check_writable(path.parent, "out")


def export(run: Run, path: Path, *, format: str, overwrite: bool = False) -> dict[str, Any]:
    """Write a run's network as a file, compare the file's results with the run's, and return facts about the file.

    Args:
        run: Result of :func:`~deepclust_ext.runs.open_run`.
        path: Path of the file.
        format: "onnx", "torch" for a program of ``torch.export``, or "safetensors" for the weights alone.
        overwrite: Whether to replace a file.

    Returns:
        Shape, dtype and range of ``images``, how they must be scaled and resized, how the network normalizes them, the
        shapes of ``rows`` and ``shares``, method, backbone and versions; the file's path and bytes, and its largest
        difference from the run. All except the last three are in the file too.

    Raises:
        FileExistsError: See :func:`check_target`.
        ImportError: See :func:`check_target`.
        RuntimeError: If the network cannot be traced, needs operators that are not torch's, or the file's results
            differ from the run's by more than 1e-4.
        ValueError: See :func:`check_target` and :class:`ExportedNetwork`; also if the network is too large for ONNX.
    """
    check_target(path, format, overwrite=overwrite)
    network = ExportedNetwork(run.trained)
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if format == "onnx" and size >= ONNX_LIMIT:
        raise ValueError(
            f"format: expected weights below {ONNX_LIMIT:,} bytes for onnx, got {size:,}; torch takes them"
        )
    ours = copy.deepcopy(run.trained).cpu().float()
    data = run.recipe.data
    images = torch.rand(2, data.channels, data.size, data.size, dtype=torch.float32, device="cpu")
    facts = {"format": format, **_facts(run, *(part.shape[1] for part in ours(images)))}
    with tqdm(total=2, desc=f"writing {path.name}", leave=False, disable=None) as bar, replacing(path) as unfinished:
        FORMATS[format].write(network, images, unfinished, facts)
        bar.update()
        bar.set_description(f"checking {path.name}")
        difference = _largest_difference(FORMATS[format].load(network, unfinished), ours, images.shape[1:])
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"backbone: expected {format} to give rows and shares within {TOLERANCE:g} of ours, "
                f"got {difference:.2g}; nothing is written"
            )
        bar.update()
    return facts | {"path": str(path), "bytes": path.stat().st_size, "largest_difference": difference}


def describe(facts: Mapping[str, Any]) -> str:
    """Return the facts of :func:`export` as text."""
    shapes = {name: " x ".join(map(str, facts[name])) for name in ("images", "rows", "shares")}
    method = "bicubic, then kept between 0 and 1" if facts["resize"] == "bicubic" else facts["resize"]
    scale = "the largest value of their type" if facts["scale"] == "type" else "percentiles of the run's images"
    kind, values = ("images", f" from 0 to 1 by {scale}") if facts["range"] else ("features", "")
    lines = {
        "written": f"{facts['path']}, {facts['bytes']:,} bytes, {facts['method']} with {facts['backbone']}",
        kind: f"{shapes['images']}, {facts['dtype']}{values}, any batch",
        "resize before": f"{method}, with antialias, without keeping the aspect" if method else "nothing",
        "normalize": "within the network" if facts["mean"] else "nothing",
        "rows": f"{shapes['rows']}, of length 1",
        "shares": f"{shapes['shares']}, the cluster is the largest",
        "compared": f"differs from the run by {facts['largest_difference']:.1g} at most",
    }
    return "\n".join(f"{name:<15}{text}" for name, text in lines.items())


def _facts(run: Run, row_size: int, num_clusters: int) -> dict[str, Any]:
    data, view, source = run.recipe.data, run.trained.test_view, run.record.get("source") or {}
    mean, std, resize = (None if view is None else getattr(view, name) for name in ("mean", "std", "interpolation"))
    return {
        "method": run.recipe.method,
        "backbone": run.recipe.backbone.name,
        "images": ["batch", data.channels, data.size, data.size],
        "dtype": "float32",
        "range": None if run.holds_features else [0, 1],
        "scale": source.get("scale", "type"),
        "resize": "bilinear" if source.get("size") else resize,  # images that came resized were so without a view
        "mean": mean and list(mean),
        "std": std and list(std),
        "rows": ["batch", row_size],
        "shares": ["batch", num_clusters],
        "versions": {"deepclust_ext": deepclust_ext.__version__, "torch": str(torch.__version__)},
    }


def _trace(network: ExportedNetwork, images: Tensor) -> Any:
    """Return the program of a network for any number of images."""
    try:
        with torch.no_grad():
            batch = torch.export.Dim("batch")
            program = torch.export.export(network, (images,), dynamic_shapes={"images": {0: batch}})
    except Exception as error:  # whatever a backbone's own code raises when it meets symbols
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(f"backbone: torch.export cannot trace it for any number of images: {reason}") from error
    nodes = [
        node for part in program.graph_module.modules() if isinstance(part, GraphModule) for node in part.graph.nodes
    ]
    for node in nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    targets = {node.target for node in nodes if isinstance(node.target, OpOverload)}
    if foreign := sorted(str(target) for target in targets if target.namespace not in ("aten", "prim", "prims")):
        raise RuntimeError(
            f"backbone: expected torch's own operators, so that the file loads by itself, got {', '.join(foreign)}"
        )
    return program


def _write_program(network: ExportedNetwork, images: Tensor, path: Path, facts: dict[str, Any]) -> None:
    written = BytesIO()  # into a file torch writes by itself, and a full disk then aborts the process
    torch.export.save(_trace(network, images), written, extra_files={FACTS: json.dumps(facts)})
    path.write_bytes(written.getbuffer())


def _load_program(network: ExportedNetwork, path: Path) -> Function:
    run: Function = torch.export.load(path).module()
    return run


def _write_onnx(network: ExportedNetwork, images: Tensor, path: Path, facts: dict[str, Any]) -> None:
    program = torch.onnx.export(
        _trace(network, images),
        (images,),
        input_names=["images"],
        output_names=["rows", "shares"],
        dynamic_shapes={"images": {0: "batch"}},  # for the axis's name
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[FACTS] = json.dumps(facts)
    program.save(path, external_data=False)


def _load_onnx(network: ExportedNetwork, path: Path) -> Function:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        rows, shares = session.run(["rows", "shares"], {"images": images.numpy()})
        return torch.from_numpy(rows), torch.from_numpy(shares)

    return run


def _write_weights(network: ExportedNetwork, images: Tensor, path: Path, facts: dict[str, Any]) -> None:
    from safetensors.torch import save

    # Clones, since such a file holds no tensor twice: tied weights are written as two.
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path.write_bytes(save(weights, {FACTS: json.dumps(facts)}))  # whose own files raise errors of another kind


def _load_weights(network: ExportedNetwork, path: Path) -> Function:
    from safetensors.torch import load_file

    weights = load_file(path)

    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        results: tuple[Tensor, Tensor] = torch.func.functional_call(
            network, weights, (images,), tie_weights=False, strict=True
        )
        return results

    return run


def _largest_difference(run: Function, ours: Function, shape: torch.Size) -> float:
    """Return the largest difference between rows and shares of two functions, NaN if either gives NaN."""
    generator = torch.Generator("cpu").manual_seed(0)
    differences = []
    for count in BATCHES:
        images = torch.rand(count, *shape, generator=generator, dtype=torch.float32, device="cpu")
        for theirs, expected in zip(run(images), ours(images), strict=True):
            differences.append((theirs - expected).abs().max())
    return float(torch.stack(differences).max())


@dataclass(frozen=True)
class Format:
    """A file format: its suffix, the packages beyond torch that it needs, and how it is written and loaded."""

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[ExportedNetwork, Tensor, Path, dict[str, Any]], None]
    load: Callable[[ExportedNetwork, Path], Function]


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxruntime", "onnxscript"), _write_onnx, _load_onnx),
    "safetensors": Format(".safetensors", ("safetensors",), _write_weights, _load_weights),
    "torch": Format(".pt2", (), _write_program, _load_program),
}

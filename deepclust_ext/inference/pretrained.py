"""A frozen network that embeds images: its name, its weights, and the size and normalization of its images."""

import hashlib
import inspect
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deepclust_ext.backbones import BACKBONES
from deepclust_ext.backbones.from_timm import timm_network, without_classifier
from deepclust_ext.backbones.load import feature_dim_of, own_network
from deepclust_ext.data.random_views import check_normalization
from deepclust_ext.data.views import IMAGENET_MEAN, IMAGENET_STD, resize_view
from deepclust_ext.inference.loop import map_images
from deepclust_ext.inference.weights import digest_of, load_weights, read_weights, weights_of
from deepclust_ext.ops._checks import check_size

TIMM = "timm:"
#: How a function's network sees images where nobody says so.
FUNCTION: dict[str, Any] = {"size": 224, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"}
#: Images at a time: a large transformer takes a gigabyte for so many.
BATCH_SIZE = 64


@dataclass(frozen=True)
class Pretrained:
    """A network with fixed weights that maps images to rows of features; nothing is downloaded.

    Attributes:
        name: "timm:" and the name of a network of timm, or "module:function" of a function without arguments that
            returns an nn.Module.
        weights: File of its weights, a state dict of torch or .safetensors; None for a function that returns a network
            with weights.
        size: Side of the square that images are resized to; None for timm's size of the network, or 224.
        mean: Mean of each channel; None for timm's, or ImageNet's.
        std: Standard deviation of each channel.
        interpolation: "bicubic" or "bilinear"; None for timm's, or "bicubic".
        digest: SHA-256 of the weights; None until they have been read.
        code: SHA-256 of the function's module; "" without one.

    Raises:
        ValueError: If the name is none of these, or a setting lies outside its range.
    """

    name: str
    weights: str | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    digest: str | None = None
    code: str = ""

    def __post_init__(self) -> None:
        if ":" not in self.name:
            own = f"; --set backbone.name={self.name} trains that one from scratch" if self.name in BACKBONES else ""
            raise ValueError(f"backbone: expected 'timm:NAME' or 'module:function', got {self.name!r}{own}")
        if self.weights == "":
            raise ValueError("weights: expected a file, got an empty name")
        if self.name.startswith(TIMM) and self.weights is None:
            raise ValueError(
                f"weights: expected a file of the weights of {self.name}, since nothing is downloaded, got none"
            )
        if self.size is not None:
            check_size(self.size, "image_size")
        check_normalization(self.mean, self.std)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Pretrained":
        """Return the network that a JSON object describes."""
        numbers = {name: stored[name] and tuple(stored[name]) for name in ("mean", "std")}
        return cls(**{**stored, **numbers})

    def resolved(self) -> "Pretrained":
        """Return the same with an absolute path, for whoever reads it from another folder."""
        return self if self.weights is None else replace(self, weights=str(Path(self.weights).resolve()))

    def fingerprint(self, images: str) -> str:
        """Return a hash of all that decides the rows of images, given by their fingerprint, except the device."""
        decides = {**asdict(self), "weights": None, "images": images}
        return hashlib.sha256(repr(sorted(decides.items())).encode()).hexdigest()

    def load(self) -> tuple["Pretrained", nn.Module]:
        """Return this with all settings filled in, and the network, in evaluation mode and float32, on the CPU.

        Raises:
            FileNotFoundError: If there is no file of weights.
            ImportError: If timm or the module cannot be imported.
            TypeError: If the function returns no network, or the network no floating tensor.
            ValueError: If there is no such network, the weights do not fit it or have changed, a part stays in training
                mode, or the network does not map images to finite rows, the same each time.
        """
        with torch.random.fork_rng(devices=()):  # first weights are drawn, and then replaced
            network, found = self._with_weights()
            digest = digest_of(network)
            if self.weights is None and digest_of(self._with_weights()[0]) != digest:
                raise ValueError(
                    f"weights: expected a file, or the same weights from each call of {self.name}, got random ones"
                )
        if training := [part for part, module in network.named_modules() if module.training]:
            raise ValueError(
                f"backbone: expected evaluation mode after eval(), got training mode in {training[0] or 'all'} of "
                f"{self.name}, which would make rows depend on their batch or on chance"
            )
        if self.digest not in (None, digest):
            raise ValueError(
                f"weights: expected those of {self.name} that the run was trained with, sha256 {self.digest}, got "
                f"others from {self.weights or 'its function'}, {digest}"
            )
        if self.digest is not None and self.code != found.code:
            warnings.warn(
                f"the module of {self.name} has changed since the run was trained: rows may be others",
                RuntimeWarning,
                stacklevel=2,
            )
        assert found.size is not None
        assert found.mean is not None
        shape = (2, len(found.mean), found.size, found.size)
        feature_dim_of(network, self.name, shape)
        weight = next(network.parameters(), torch.empty(0, device="cpu"))
        white = torch.ones(shape, dtype=torch.float32, device=weight.device)
        with torch.no_grad():
            first, second = network(white), network(white)
        if not torch.equal(first.nan_to_num(), second.nan_to_num()):
            raise ValueError(
                f"backbone: expected the same rows of the same images from {self.name}, got others the second time; "
                "F.dropout, for example, is active unless training=self.training says otherwise"
            )
        return replace(found, digest=digest), network

    def embed(
        self,
        network: nn.Module,
        images: Dataset[Any],
        *,
        device: torch.device | str = "cpu",
        **loop: Any,
    ) -> Tensor:
        """Return the rows (N, D) of images, float32 on the CPU; NaN where the network returns NaN.

        Args:
            network: Result of :meth:`load`, together with these settings.
            images: Map-style, with as many channels as ``mean``.
            device: Where the network computes.
            **loop: Other arguments of :func:`deepclust_ext.inference.map_images`.

        Raises:
            TypeError: As :func:`~deepclust_ext.inference.map_images`.
            ValueError: As :func:`~deepclust_ext.inference.map_images`, or if the network gives something else than a
                row for each image.
        """
        columns: list[int] = []  # of the first batch

        def rows_of(views: Tensor) -> tuple[Tensor]:
            with torch.no_grad():
                rows: Tensor = network(views.float())
            if rows.dim() == 2:
                columns.append(rows.shape[1])
            if rows.dim() != 2 or len(rows) != len(views) or columns[-1] != columns[0]:
                wanted = f"({len(views)}, {columns[0] if columns else 'D'})"
                raise ValueError(
                    f"backbone: expected rows {wanted} of {self.name} for as many images, got shape {tuple(rows.shape)}"
                )
            return (rows.float().cpu(),)

        network.to(device)
        view = resize_view(self.size, interpolation=self.interpolation, mean=self.mean, std=self.std)  # type: ignore[arg-type]
        settings = {"batch_size": BATCH_SIZE, "progress": "embedding", **loop}
        (rows,) = map_images(rows_of, images, test_view=view, device=device, **settings)
        return rows

    def _with_weights(self) -> tuple[nn.Module, "Pretrained"]:
        """Return the network with its weights, and this with how it sees images."""
        path = Path(self.weights or "")
        if self.digest is not None and self.weights is not None and not path.exists():
            raise FileNotFoundError(
                f"weights: expected those of {self.name}, which embeds the run's images, at {path}, found nothing; "
                "--weights FILE says where they lie now, to `train --resume` for good, to other commands for once"
            )
        state = None if self.weights is None else read_weights(path)
        of_timm = self.name.startswith(TIMM)
        if of_timm:
            network, known = timm_network(self.name.removeprefix(TIMM), self.size)
        else:
            network, known = own_network(self.name), FUNCTION
        if state is not None:
            state = weights_of(network, state, path)
            if of_timm:
                try:
                    state = without_classifier(state, network)
                except ValueError as error:
                    raise ValueError(f"weights: expected in {path} {error}") from error
            load_weights(network, state, path)
        seen = {name: getattr(self, name) or known[name] for name in ("size", "interpolation")}
        seen["interpolation"] = "bilinear" if seen["interpolation"] == "bilinear" else "bicubic"
        mean: Any = known["mean"] if self.mean is None else self.mean
        std: Any = known["std"] if self.std is None else self.std
        code = "" if of_timm else _code_of(self.name.partition(":")[0])
        network.float().eval().requires_grad_(False)
        return network, replace(self, **seen, mean=tuple(mean), std=tuple(std), code=code)


def _code_of(module: str) -> str:
    """Return the SHA-256 of a module's text, or "" where there is none."""
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()
    except (OSError, TypeError):
        return ""

"""Networks that tests take as pretrained ones, by name, and files of their weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = __name__
SIZE, WIDTH = 12, 16
#: How many images each call of a network was given. Images of one color, which only try its output, do not count.
CALLS: list[int] = []

_KINDS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


class Noted(nn.Sequential):
    """A network that notes its calls."""

    def forward(self, images: Tensor) -> Tensor:
        if images.min() != images.max():
            CALLS.append(len(images))
        rows: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return rows


def build() -> nn.Module:
    """Return a network from (B, 3, S, S) to (B, 16), with random weights."""
    convolution = nn.Conv2d(3, WIDTH // 4, 3, stride=2)
    norm = nn.BatchNorm2d(WIDTH // 4)
    return Noted(convolution, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5))


def trained(seed: int = 0) -> nn.Module:
    """Return the network with weights and statistics that a seed decides."""
    generator = torch.Generator().manual_seed(seed)
    network = build()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + (0.1 if name.endswith("var") else -0.5))
    return network


def gray() -> nn.Module:
    """Return a network of gray images."""
    return nn.Sequential(nn.Flatten())


class Stubborn(nn.Dropout):
    """A part that never leaves training mode."""

    def train(self, mode: bool = True) -> "Stubborn":
        return super().train(True)


def stubborn() -> nn.Module:
    return nn.Sequential(nn.Flatten(), Stubborn())


class Random(nn.Module):
    """Drops numbers whatever its mode."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(images.flatten(1), 0.5)


def random() -> nn.Module:
    return Random()


class Widening(nn.Module):
    """Has as many columns as there are images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : len(images)]


def widening() -> nn.Module:
    return Widening()


def refusing() -> nn.Module:
    raise RuntimeError("no such\nweights")


def leaving() -> nn.Module:
    raise SystemExit(0)


class Spoiling(nn.Module):
    """Gives the first pixel of a bright image as NaN."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        return rows.where(rows.mean(1, keepdim=True) < 0.9, torch.nan)


def spoiling() -> nn.Module:
    return Spoiling()


class Squeezing(nn.Module):
    """Has no row for a batch of one image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).squeeze(0)


def squeezing() -> nn.Module:
    return Squeezing()


def save(path: Path, state: Mapping[str, Any]) -> Path:
    """Write weights as the file's name ends."""
    if path.suffix == ".safetensors":
        write_safetensors(path, state)
    else:
        torch.save(dict(state), path)
    return path


def write_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write the file by its format, without the package."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in state.items():
        part = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(part)]
        header[name] = {"dtype": _KINDS[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        data += part
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights of another precision; whole numbers stay."""
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}

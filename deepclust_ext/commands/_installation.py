"""The facts of an installation, and how they read."""

import importlib
import platform
from typing import Any

import torch

import deepclust_ext
from deepclust_ext import _extension


def collect_info() -> dict[str, Any]:
    """Return the facts that `deepclust-ext info` prints, JSON-serializable; absent facts are None or empty."""
    record = _extension.build_record()
    native = bool(_extension.NATIVE_DEVICES)
    built = dict(importlib.import_module("deepclust_ext._C").build_info()) if native else {}
    return {
        "version": deepclust_ext.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cuda_available": torch.cuda.is_available(),
        "backend_requested": _extension.BACKEND,
        "backend": "native" if native else "reference",
        "reason": _extension.REASON,
        "cure": None if native or _extension.BACKEND == "reference" else _extension.rebuild_command(),
        "devices": sorted(_extension.NATIVE_DEVICES),
        **{name: built.get(name) for name in ("cpu_capability", "torch_capability", "compiler")},
        "processor_capabilities": built.get("processor_capabilities", []),
        "cuda_architectures": built.get("cuda_architectures", []),
        "cuda_decision": record.get("cuda_reason"),
        "built_for_torch": record.get("torch_version", built.get("torch_version")),
        "built_for_cuda": built.get("cuda_version"),
    }


def format_info(info: dict[str, Any]) -> str:
    """Return the facts of :func:`collect_info` for a person to read."""
    native = info["backend"] == "native"
    facts = ("cpu_capability", "torch_capability", "cuda_decision", "built_for_torch", "compiler")
    unknown = [name for name in facts if info[name] is None]  # to an older library, or to one without its record
    info = info | dict.fromkeys(unknown, "unknown")
    cuda = f"CUDA {info['torch_cuda']}" if info["torch_cuda"] else "without CUDA"
    lines = {
        "deepclust_ext": info["version"],
        "python": f"{info['python']} on {info['platform']}",
        "torch": f"{info['torch']}, {cuda}, GPU {'visible' if info['cuda_available'] else 'not visible'}",
        "backend": info["backend"] if native else f"reference: {info['reason']}",
    }
    if info["cure"] or (native and unknown):
        lines["to build"] = info["cure"] or f"{_extension.rebuild_command()}, for the library is older than the rest"
    if native:
        lines["native on"] = ", ".join(info["devices"])
        lines["built for"] = f"torch {info['built_for_torch']}, compiler {info['compiler']}"
        lines["CPU kernels"] = info["cpu_capability"]
        if info["torch_capability"] not in ("unknown", *info["processor_capabilities"]):
            lines["CPU kernels"] += f": this processor has no {info['torch_capability']}, which ATEN_CPU_CAPABILITY "
            lines["CPU kernels"] += "asks for; torch's own kernels will crash"
        lines["CUDA kernels"] = f"none: {info['cuda_decision']}"
        if "cuda" in info["devices"]:
            architectures = ", ".join(info["cuda_architectures"])
            lines["CUDA kernels"] = f"CUDA {info['built_for_cuda'] or 'unknown'} for {architectures or 'unknown'}"
    return "\n".join(f"{name:<14}{value}" for name, value in lines.items())

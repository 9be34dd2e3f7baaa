"""The facts that `deepclust-ext info` shows."""

import json
import platform
import re

import pytest
import torch

import deepclust_ext
from deepclust_ext import _extension
from deepclust_ext.commands._installation import collect_info, format_info


def test_facts_of_this_installation() -> None:
    info = collect_info()
    assert info["version"] == deepclust_ext.__version__
    assert info["torch"] == torch.__version__
    assert info["python"] == platform.python_version()
    assert info["backend"] == "native"
    assert info["reason"] is None
    assert info["cure"] is None
    assert "cpu" in info["devices"]
    assert info["built_for_torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert info["cuda_decision"]
    assert json.loads(json.dumps(info)) == info


def test_cuda_facts_agree_with_the_build_record() -> None:
    info = collect_info()
    built = bool(_extension.build_record()["cuda"])
    assert ("cuda" in info["devices"]) == built
    assert bool(info["built_for_cuda"]) == built
    assert bool(info["cuda_architectures"]) == built
    for architecture in info["cuda_architectures"]:
        assert re.fullmatch(r"\d+\.\d+a?(\+PTX)?", architecture)


def test_text_says_why_there_are_no_cuda_kernels() -> None:
    info = collect_info() | {"devices": ["cpu"], "cuda_decision": "torch was built without CUDA"}
    assert "CUDA kernels  none: torch was built without CUDA" in format_info(info).splitlines()


def test_text_lists_the_cuda_architectures() -> None:
    info = collect_info() | {"devices": ["cpu", "cuda"], "built_for_cuda": "13.0", "cuda_architectures": ["8.0", "9.0"]}
    assert "CUDA kernels  CUDA 13.0 for 8.0, 9.0" in format_info(info).splitlines()


def test_text_gives_reason_and_cure_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    monkeypatch.setattr(_extension, "REASON", "it is not built for Python 3.10")
    text = format_info(collect_info())
    assert "backend       reference: it is not built for Python 3.10" in text
    assert f"to build      {_extension.rebuild_command()}" in text
    assert "native on" not in text


def test_text_says_that_more_was_asked_for_than_the_processor_has() -> None:
    asked = {"cpu_capability": "AVX2", "torch_capability": "AVX512", "processor_capabilities": ["baseline", "AVX2"]}
    lines = format_info(collect_info() | asked).splitlines()
    assert (
        "CPU kernels   AVX2: this processor has no AVX512, which ATEN_CPU_CAPABILITY asks for; "
        "torch's own kernels will crash"
    ) in lines
    assert "CPU kernels   AVX2" in format_info(collect_info() | asked | {"torch_capability": "AVX2"}).splitlines()


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cuda"]])
def test_text_says_that_the_library_is_older_than_the_package(
    devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepclust_ext._C.build_info", lambda: {"devices": devices})
    monkeypatch.setattr(_extension, "build_record", dict)
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset(devices))
    text = format_info(collect_info())
    assert "None" not in text
    assert f"to build      {_extension.rebuild_command()}, for the library is older than the rest" in text
    assert "CPU kernels   unknown" in text.splitlines()

"""What torch.compile writes for one instruction set is not taken for another."""

import os

import pytest
import torch

from benchmarks.harness import separate_compiled_code


def test_compiled_code_is_kept_apart_by_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for capability in ("AVX2", "AVX512"):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        separate_compiled_code()
        folders.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert [folder.rpartition("_")[2] for folder in folders] == ["AVX2", "AVX512"]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "own")
    separate_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "own"

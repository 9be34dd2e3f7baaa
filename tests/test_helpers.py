"""What tests measure with."""

import pytest
import torch

from tests.helpers import peak_extra_megabytes


def test_peak_memory_is_that_of_the_call_whatever_this_process_has_had() -> None:
    held = torch.ones(150_000_000)  # with what was imported, more than the process has that makes the call
    assert peak_extra_megabytes("", "", "x = torch.ones(50_000_000)") == pytest.approx(191, abs=20)
    assert bool(held.any())

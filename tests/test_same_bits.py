"""Results of all ops stay what they were, to the bit; a change that is meant writes tests/same_bits.json anew."""

import json

import pytest

from tests import same_bits
from tests.helpers import EMULATED, INSTRUCTION_SETS
from tests.ops.opsamples import SAMPLE_INPUTS

KEPT = json.loads(same_bits.PATH.read_text())


def test_every_op_and_dtype_has_a_hash() -> None:
    names = {f"{op} {str(dtype).removeprefix('torch.')}" for op in SAMPLE_INPUTS for dtype in same_bits.DTYPES}
    assert "AVX2" in KEPT["hashes"]
    for hashes in KEPT["hashes"].values():
        assert set(hashes) == names


@pytest.mark.parametrize("instruction_set", KEPT["hashes"])
def test_results_have_the_same_bits(instruction_set: str) -> None:
    if EMULATED or instruction_set not in INSTRUCTION_SETS:
        pytest.skip(f"this library or processor has no {instruction_set}")
    if same_bits.compiler() != KEPT["compiler"]:
        pytest.skip(f"the library was built by {same_bits.compiler()}, the hashes by {KEPT['compiler']}")
    assert same_bits.changed(instruction_set) == []

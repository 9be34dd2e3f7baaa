"""Which instruction set of the CPU kernels runs: torch's choice, and never one that the processor lacks."""

from pathlib import Path

import pytest

from tests.forks import run_python
from tests.helpers import CAPABILITY_VARIABLE, EMULATED, INSTRUCTION_SETS

pytestmark = pytest.mark.skipif(EMULATED or not INSTRUCTION_SETS, reason="needs the native CPU kernels")

NEEDED = {"AVX2": {"avx2", "fma"}, "AVX512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}}  # as Linux names them

# No op of torch's makes or reads the numbers: torch runs what ATEN_CPU_CAPABILITY says and may die of it.
PROBE = """
import array, torch, deepclust_ext.ops
rows = torch.frombuffer(array.array("f", range(96 * 7)), dtype=torch.float32).view(96, 7)
cosines, indices = deepclust_ext._C.nearest_neighbors(rows, rows, k=2)
info = deepclust_ext._C.build_info()
print(info["cpu_capability"], info["torch_capability"], indices[5, 0].item())
"""


@pytest.mark.parametrize("asked", CAPABILITY_VARIABLE)
def test_a_set_that_the_processor_lacks_is_never_chosen(asked: str) -> None:
    output = run_python(PROBE, ATEN_CPU_CAPABILITY=CAPABILITY_VARIABLE[asked])
    assert output.returncode == 0, output.stderr
    runs = asked if asked in INSTRUCTION_SETS else INSTRUCTION_SETS[-1]
    assert output.stdout.split() == [runs, asked, "5"]


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="Linux tells what the processor has")
def test_what_the_processor_has_is_what_the_system_says() -> None:
    line = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags")), "")
    present = [name for name, flags in NEEDED.items() if flags <= set(line.split())]
    assert ["baseline", *present] == INSTRUCTION_SETS

"""What tests/cuda/check_cuda.py makes of the words of ptxas, PTX and launch recorder."""

import dataclasses
from typing import Any

import pytest

from tests.cuda.check_cuda import (
    Kernel,
    Launch,
    find_problems,
    parse_launch_bounds,
    parse_launches,
    parse_ptxas,
    short_name,
)

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4mineIfLi64EEvPKT_' for 'sm_80'
ptxas info    : Function properties for _Z4mineIfLi64EEvPKT_
    48 bytes stack frame, 24 bytes spill stores, 128 bytes spill loads
ptxas info    : Function properties for _Z6helperPf
    0 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 48 bytes cumulative stack size, 384 bytes smem, 608 bytes cmem[0]
ptxas info    : Compile time = 1.187 ms
ptxas info    : Compiling entry function '_Z5plainPf' for 'sm_90'
ptxas info    : Function properties for _Z5plainPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
ptxas info    : Compile time = 0.570 ms
"""

PTX = """\
.visible .entry _Z4mineIfLi64EEvPKT_(
	.param .u64 .ptr .align 1 _Z4mineIfLi64EEvPKT__param_0
)
.maxntid 64, 2, 1
{
}
.entry _Z4oneDPf(
	.param .u64 _Z4oneDPf_param_0
)
.maxntid 256
{
}
.entry _Z5plainPf(
	.param .u64 _Z5plainPf_param_0
)
{
}
"""

KERNEL = Kernel("kernel", "sm_86", registers=128, spill_bytes=0, static_shared=1024)
LAUNCH = Launch("kernel", (2**31 - 1, 65535, 1), threads=512, dynamic_shared=98 << 10)


def test_kernels_of_ptxas_with_the_spills_of_what_they_call() -> None:
    assert parse_ptxas(PTXAS) == [
        Kernel("_Z4mineIfLi64EEvPKT_", "sm_80", registers=168, spill_bytes=156, static_shared=384),
        Kernel("_Z5plainPf", "sm_90", registers=10, spill_bytes=0, static_shared=0),
    ]


def test_launch_bounds_in_one_dimension_and_more() -> None:
    assert parse_launch_bounds(PTX) == {"_Z4mineIfLi64EEvPKT_": 128, "_Z4oneDPf": 256}


def test_launches_of_the_recorder() -> None:
    assert parse_launches("_Z5plainPf 3 2 1 128 73728\n") == [Launch("_Z5plainPf", (3, 2, 1), 128, 73728)]


def test_a_kernel_at_every_limit_is_right() -> None:
    assert find_problems(KERNEL, [LAUNCH], 512) == []


@pytest.mark.parametrize(
    ("kernel", "launch", "launch_bound", "problem"),
    [
        ({"spill_bytes": 8}, {}, 512, "spills 8 bytes"),
        (
            {"static_shared": 49153},
            {"dynamic_shared": 0},
            512,
            "49153 bytes of static shared memory, limit 49152",
        ),
        ({}, {}, None, "no __launch_bounds__"),
        ({"registers": 129}, {}, 512, "512 threads take 69632 registers, limit 65536"),
        ({}, {}, 256, "launched with 512 threads, __launch_bounds__ says 256"),
        ({"static_shared": 1025}, {}, 512, "101377 bytes of shared memory, limit 101376"),
        ({}, {"grid": (1, 65536, 1)}, 512, "launched with grid (1, 65536, 1), limit (2147483647, 65535, 65535)"),
        ({}, {"grid": (0, 1, 1)}, 512, "launched with grid (0, 1, 1), limit (2147483647, 65535, 65535)"),
    ],
)
def test_each_violation_is_named_once(
    kernel: dict[str, Any], launch: dict[str, Any], launch_bound: int | None, problem: str
) -> None:
    launches = [dataclasses.replace(LAUNCH, **launch)] * 2
    assert find_problems(dataclasses.replace(KERNEL, **kernel), launches, launch_bound) == [f"sm_86: {problem}"]


def test_a_kernel_that_is_never_launched_is_named() -> None:
    assert find_problems(KERNEL, [], 512) == ["sm_86: never launched by tests/cuda/launches/main.cu"]


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("void deepclust::mining::(anonymous namespace)::mine<deepclust::Bf16, 4>", "mine<Bf16, 4>"),
        ("deepclust::(anonymous namespace)::fill(float*)", "fill"),
    ],
)
def test_short_names(demangled: str, name: str) -> None:
    assert short_name(demangled) == name

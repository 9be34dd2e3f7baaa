"""Every check of the emulated device finds the bug planted for it, at the right line, and is silent on correct kernels.

Cases stand in selftest/*.cu: those in BUGS must be diagnosed, all others must pass. A comment `BUG: case` there stands
above each statement of which the case's error must name one.
"""

import functools
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cuda.emulator.build import ROOT, build_program, emulating_compiler

SELFTEST = Path(__file__).parent / "selftest"
RUNNER = Path(__file__).parents[1] / "conformance" / "runner.cpp"
SOURCES = sorted(SELFTEST.glob("*.cu"))
CASES = re.findall(r"^DEVICE_CASE\((\w+)\)", "\n".join(path.read_text() for path in SOURCES), re.MULTILINE)
MODES = ("plain", "asan", "check")
SCHEDULES = ("forward", "reverse", "random")

# What to expect of a planted bug: for each build that must find it, a pattern of the message.
Diagnosis = dict[str, str]


def in_every_build(message: str) -> Diagnosis:
    """Return the diagnosis of what the emulator itself refuses."""
    return dict.fromkeys(MODES, message)


RACE = {"check": "data race on"}
UNWRITTEN = {"check": "uninitialized read of"}
UNWRITTEN_IS_NAN = in_every_build("expected 2, got -?nan") | UNWRITTEN
RACE_OR_UNWRITTEN = {"check": "data race on|uninitialized read of"}  # whichever the schedule brings first
OUT_OF_BOUNDS = {
    "asan": "AddressSanitizer: (heap-buffer-overflow|use-after-poison)|runtime error: index 8 out of bounds",
    "check": "out of bounds: .*(read|write)",
}
IN_FLIGHT = {"check": "read before the wait for the cp.async that fills"}
NOT_CONVERTED = in_every_build("operand a of lane 0 was not converted to tf32")
DIVERGENT_BARRIER = in_every_build("divergent barrier: ")
HALF_BLOCK_BARRIER = DIVERGENT_BARRIER | {"check": "divergent barrier: |data race on|uninitialized read of"}

BUGS: dict[str, Diagnosis] = {
    "tile_no_barrier_after_load": RACE_OR_UNWRITTEN,
    "tile_no_barrier_before_overwrite": RACE,
    "tile_no_barrier_before_labels": RACE,
    "tile_unwritten_padding": UNWRITTEN,
    "tile_past_last_array": OUT_OF_BOUNDS,
    "tile_read_past_last_array": OUT_OF_BOUNDS,
    "tile_into_next_array": OUT_OF_BOUNDS,
    "tile_unguarded_row": OUT_OF_BOUNDS,
    "tile_divergent_barrier": DIVERGENT_BARRIER,
    "tile_divergent_barrier_on_one_line": DIVERGENT_BARRIER,
    "tile_half_block_barrier": HALF_BLOCK_BARRIER,
    "tile_half_reduction": in_every_build("expected 354, got 140"),
    "fragment_no_barrier_after_load": RACE_OR_UNWRITTEN,
    "fragment_no_barrier_before_overwrite": RACE,
    "fragment_no_syncwarp_after_store": RACE_OR_UNWRITTEN,
    "fragment_unguarded_row": OUT_OF_BOUNDS,
    "fragment_not_converted": NOT_CONVERTED,
    "fragment_misaligned_pointer": in_every_build("load_matrix_sync: misaligned pointer"),
    "fragment_wrong_pitch": in_every_build("leading dimension 25 is no multiple of 16 bytes"),
    "fragment_lanes_disagree": in_every_build(r"lanes 0 and 7 pass different arguments"),
    "pipeline_no_barrier_after_wait": RACE_OR_UNWRITTEN,
    "pipeline_no_barrier_before_refill": RACE,
    "pipeline_waits_for_one_group_less": IN_FLIGHT,
    "pipeline_misaligned_row": in_every_build("ldmatrix_x4: misaligned row"),
    "copy_read_without_wait": IN_FLIGHT,
    "copy_read_without_barrier": RACE_OR_UNWRITTEN,
    "copy_read_without_commit": IN_FLIGHT,
    "copy_of_misaligned_source": in_every_build("cp_async16: misaligned source"),
    "copy_to_misaligned_target": in_every_build("cp_async16: misaligned target"),
    "copy_past_source": OUT_OF_BOUNDS,
    "copy_of_17_bytes": in_every_build("cp_async16: src_bytes is 17"),
    "copy_to_global": in_every_build("cp_async16: the target is not within an array of shared memory"),
    "copy_of_shared": in_every_build("cp_async16: the source is shared memory"),
    "copy_twice": {"check": "write before the wait for the cp.async that fills"},
    "copy_then_write": {"check": "write before the wait for the cp.async that fills"},
    "ldmatrix_of_global": in_every_build("ldmatrix_x4: the row is not within an array of shared memory"),
    "mma_a_not_converted": NOT_CONVERTED,
    "mma_b_not_converted": in_every_build("operand b of lane 0 was not converted to tf32"),
    "mma_of_diverged_lanes": in_every_build("other lanes of its warp wait in mma_m16n8k8_tf32"),
    "reduction_no_fence_before_ticket": RACE,
    "reduction_no_fence_after_ticket": RACE,
    "reduction_flag_read_early": RACE_OR_UNWRITTEN,
    "reduction_scratch_reused": RACE,
    "reduction_half_block_barrier": HALF_BLOCK_BARRIER,
    "tickets_no_fence_before": RACE,
    "tickets_no_fence_after": RACE,
    "tickets_no_barrier_before": RACE,
    "tickets_write_after_fence": RACE,
    "chain_third_block_does_not_look": RACE,
    "chain_no_fence_in_second_block": RACE,
    "histogram_past_static_array": OUT_OF_BOUNDS,
    "histogram_read_past_static_array": OUT_OF_BOUNDS,
    "histogram_never_cleared": UNWRITTEN,
    "histogram_plain_counter": RACE,
    "histogram_plain_global_counter": RACE,
    "histogram_diverged_lanes_named": in_every_build("deadlock: no thread can run|while lanes of that mask wait"),
    "mask_without_caller": in_every_build("calls __shfl_xor_sync with mask 0000ffff, which does not name it"),
    "mask_with_exited_lanes": in_every_build("mask ffffffff of __any_sync names (it|lanes fff00000)"),
    "mask_with_missing_lanes": in_every_build("mask ffffffff of __reduce_max_sync names lanes ffffff00"),
    "mask_with_diverged_lanes": in_every_build("mask ffffffff of __shfl_sync names (it|lanes fffff000)"),
    "lanes_call_different_functions": in_every_build("while lanes of that mask wait in"),
    "shuffle_from_outside_the_mask": in_every_build("lane 12 reads lane 16, which mask 0000ffff does not name"),
    "deadlock": in_every_build(r"deadlock: no thread can run; thread \(0,0,0\) waits in __syncwarp at"),
    "exit_while_awaited": in_every_build("mask ffffffff of __syncwarp names (it|lanes ffff0000)"),
    "barriers_of_different_kinds": DIVERGENT_BARRIER,
    "too_many_barriers_to_count": {"check": "cannot count so many synchronizations in one block"},
    "launch_in_kernel": in_every_build("a kernel launched a kernel"),
    "no_syncwarp": RACE_OR_UNWRITTEN,
    "no_syncwarp_before_overwrite": RACE,
    "shuffle_in_place_of_syncwarp": RACE,
    "syncwarp_of_other_lanes": RACE_OR_UNWRITTEN,
    "read_past_end": OUT_OF_BOUNDS,
    "read_before_begin": OUT_OF_BOUNDS,
    "write_past_end": OUT_OF_BOUNDS,
    "read_uninitialised": UNWRITTEN_IS_NAN,
    "accumulate_into_uninitialised": UNWRITTEN_IS_NAN,
    "atomic_on_uninitialised": UNWRITTEN_IS_NAN,
    "read_of_host_memory": {"check": "out of bounds: 4-byte read in no known buffer"},
    "misaligned_float4": {"asan": "runtime error: .* misaligned address", "check": "misaligned access to .*float4"},
    "double_past_end": OUT_OF_BOUNDS,
    "misaligned_atomic": in_every_build("misaligned 8-byte atomic access"),
    "read_of_other_threads_variable": {"check": "4-byte read of another thread's local variable"},
    "memset_past_end": {"check": "memset_async: the 128 bytes at .* are not all within one known buffer"},
    "static_shared_too_large": in_every_build("words: too much static shared memory"),
    "sync_forget_of_different_ranges": in_every_build("pass different ranges to sync_forget"),
    "sync_forget_of_global": in_every_build("sync_forget: the range is not one open array of shared memory"),
    "uninitialised_shared": UNWRITTEN_IS_NAN,
    "shared_left_by_other_block": UNWRITTEN_IS_NAN,
    "shared_array_longer_than_launch": in_every_build("exceeds the launch's 256 bytes of dynamic shared memory"),
    "plain_update_across_blocks": RACE,
    "plain_and_atomic_update": RACE,
    "store_and_atomic_update": RACE,
    "overwritten_while_other_warp_reads": RACE,
    "read_of_other_block": RACE,
    "two_threads_write_one_word": RACE,
}
WITHOUT_LINE = {
    "tile_half_reduction",  # only the values are wrong
    "static_shared_too_large",
    "memset_past_end",
    "too_many_barriers_to_count",
    "launch_in_kernel",
}
HARMLESS = [case for case in CASES if case not in BUGS]


def marks() -> Iterator[tuple[str, str]]:
    """Yield (case, file:line) for every line of every statement below a `BUG: case` comment."""
    for path in SOURCES:
        lines = path.read_text().splitlines()
        for start, line in enumerate(lines):
            if not line.lstrip().startswith("// BUG: "):
                continue
            end = start
            while lines[end].lstrip().startswith("//"):
                end += 1
            names = re.findall(r"\w+", " ".join(lines[start:end]).replace("BUG:", ""))
            while not lines[end].endswith(";"):
                end += 1
                yield from ((name, f"{path.name}:{end}") for name in names)
            yield from ((name, f"{path.name}:{end + 1}") for name in names)


@functools.cache
def program(mode: str) -> Path:
    return build_program("emulator_selftest", [*SOURCES, RUNNER], mode)


def run(mode: str, *cases: str, **environment: str) -> str:
    """Run cases and return what the program said, sanitizers included."""
    command: list[str | Path] = [program(mode), *cases]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


@pytest.mark.parametrize(("case", "mode"), [(case, mode) for case, found in BUGS.items() for mode in found])
def test_planted_bug_is_diagnosed(case: str, mode: str) -> None:
    places = [place for name, place in marks() if name == case]
    for schedule in SCHEDULES:
        output = run(mode, case, DEEPCLUST_EMULATOR_SCHEDULE=schedule)
        assert re.search(BUGS[case][mode], output), f"{schedule}: {output}"
        if case not in WITHOUT_LINE and not BUGS[case][mode].startswith("expected"):  # wrong values have no line
            assert re.search(rf"({'|'.join(places)})\b", output), f"{schedule}: none of {places} in {output}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cp_async", ["late", "early", "random"])
@pytest.mark.parametrize(("schedule", "seed"), [("forward", "1"), ("reverse", "1"), ("random", "1"), ("random", "2")])
def test_correct_kernels_pass(mode: str, schedule: str, seed: str, cp_async: str) -> None:
    output = run(
        mode,
        *HARMLESS,
        DEEPCLUST_EMULATOR_SCHEDULE=schedule,
        DEEPCLUST_EMULATOR_SEED=seed,
        DEEPCLUST_EMULATOR_CP_ASYNC=cp_async,
    )
    assert sorted(output.splitlines()) == sorted(
        [*(f"PASS {case}" for case in HARMLESS), f"{len(HARMLESS)} cases, 0 failed"]
    )


@pytest.mark.parametrize("variable", ["DEEPCLUST_EMULATOR_SCHEDULE", "DEEPCLUST_EMULATOR_CP_ASYNC"])
def test_unknown_setting_is_an_error(variable: str) -> None:
    assert f"{variable}=sideways is not a value that the emulator knows" in run(
        "plain", "tile", **{variable: "sideways"}
    )


def test_table_sources_and_marks_agree() -> None:
    assert set(BUGS) - set(CASES) == set()
    assert {name for name, _ in marks()} == set(BUGS) - WITHOUT_LINE


def test_plain_shared_variable_does_not_compile(tmp_path: Path) -> None:
    for declaration, compiles in [("__shared__ int x;", False), ("DEEPCLUST_SHARED(int, x);", True)]:
        source = tmp_path / "kernel.cu"
        kernel = f"__global__ void kernel() {{\n  {declaration}\n  x = 1;\n}}\n"
        source.write_text(f'#include "core/cuda/device.h"\n{kernel}')
        command = [*emulating_compiler(), "-fsyntax-only", "-x", "c++", source]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert (result.returncode == 0) == compiles, result.stdout
        assert ("use DEEPCLUST_SHARED or DEEPCLUST_DYNAMIC_SHARED" in result.stdout) != compiles


@pytest.mark.parametrize("source", sorted((ROOT / "csrc").glob("*/cuda/*.cu")), ids=lambda path: path.stem)
def test_kernels_are_valid_in_the_older_standard_too(source: Path) -> None:
    """Every other build compiles them as C++20."""
    strict = ["-std=c++17", "-Wpedantic", "-Werror", "-fsyntax-only"]
    command = [*emulating_compiler(), *strict, "-x", "c++", source]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout

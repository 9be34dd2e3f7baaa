// Masks, shuffles, memory between the lanes of a warp, barriers and deadlocks. See tile.cu for the conventions.
#include "../../conformance/cases.h"

namespace {

using conformance::expect_equal;
using conformance::results_of;
using conformance::warp_results_of;

constexpr unsigned kAll = 0xffffffffu;

std::vector<int> repeated(int value, size_t count = 32) { return std::vector<int>(count, value); }

__global__ void caller_not_named_kernel(int* results) {
  // BUG: mask_without_caller
  results[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 1);
}
DEVICE_CASE(mask_without_caller) { expect_equal(warp_results_of(1, caller_not_named_kernel), repeated(1)); }

__global__ void exited_lanes_kernel(int* results) {
  results[threadIdx.x] = 1;
  if (threadIdx.x >= 20) return;
  // BUG: mask_with_exited_lanes
  results[threadIdx.x] = __any_sync(kAll, 1);
}
DEVICE_CASE(mask_with_exited_lanes) { expect_equal(warp_results_of(1, exited_lanes_kernel), repeated(1)); }

__global__ void missing_lanes_kernel(int* results) {
  // BUG: mask_with_missing_lanes
  results[threadIdx.x] = __reduce_max_sync(kAll, 1);
}
DEVICE_CASE(mask_with_missing_lanes) { expect_equal(results_of(40, 1, 40, 0, missing_lanes_kernel), repeated(1, 40)); }

__global__ void diverged_lanes_kernel(int* results) {
  if (threadIdx.x < 12) {
    // BUG: mask_with_diverged_lanes
    results[threadIdx.x] = __shfl_sync(kAll, 1, 3);
  } else {
    // BUG: mask_with_diverged_lanes
    results[threadIdx.x] = __shfl_sync(0xfffff000u, 1, 20);
  }
}
DEVICE_CASE(mask_with_diverged_lanes) { expect_equal(warp_results_of(1, diverged_lanes_kernel), repeated(1)); }

__global__ void different_functions_kernel(int* results) {
  if (threadIdx.x < 12) {
    // BUG: lanes_call_different_functions
    results[threadIdx.x] = __any_sync(kAll, 1);
  } else {
    // BUG: lanes_call_different_functions
    results[threadIdx.x] = __shfl_sync(kAll, 1, 20);
  }
}
DEVICE_CASE(lanes_call_different_functions) {
  expect_equal(warp_results_of(1, different_functions_kernel), repeated(1));
}

__global__ void outside_mask_kernel(int* results) {
  results[threadIdx.x] = 1;
  if (threadIdx.x < 16) {
    // BUG: shuffle_from_outside_the_mask
    results[threadIdx.x] = __shfl_down_sync(0x0000ffffu, 1, 4);
  }
}
DEVICE_CASE(shuffle_from_outside_the_mask) { expect_equal(warp_results_of(1, outside_mask_kernel), repeated(1)); }

// Half a warp waits for the other half, which waits at the block's barrier.
__global__ void deadlock_kernel(int* results) {
  if (threadIdx.x % 32 < 16) {
    // BUG: deadlock
    __syncwarp();
  }
  // BUG: deadlock
  __syncthreads();
  results[threadIdx.x] = 1;
}
DEVICE_CASE(deadlock) { expect_equal(warp_results_of(1, deadlock_kernel), repeated(1)); }

__global__ void exit_while_awaited_kernel(int* results) {  // lanes leave while the others already wait for them
  results[threadIdx.x] = 1;
  if (threadIdx.x < 16) {
    // BUG: exit_while_awaited
    __syncwarp();
  }
}
DEVICE_CASE(exit_while_awaited) { expect_equal(warp_results_of(1, exit_while_awaited_kernel), repeated(1)); }

__global__ void barrier_kinds_kernel(int* results) {
  // BUG: barriers_of_different_kinds
  results[threadIdx.x] = threadIdx.x < 32 ? __syncthreads_or(1) : __syncthreads_count(1);
}
DEVICE_CASE(barriers_of_different_kinds) {
  expect_equal(results_of(64, 1, 64, 0, barrier_kinds_kernel), repeated(64, 64));
}

enum class Between { kSyncwarp, kNothing, kShuffle, kPartialSyncwarp, kSyncwarpOnlyBeforeRead };

// Every lane writes a word that is private to its warp and reads that of its neighbor.
template <Between kBetween>
__global__ void neighbor_kernel(int* results) {
  DEEPCLUST_SHARED(int, words, [2][32]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int round = 0; round < 3; ++round) {
    // BUG: no_syncwarp, no_syncwarp_before_overwrite, shuffle_in_place_of_syncwarp, syncwarp_of_other_lanes
    words[warp][lane] = lane + round;
    if (kBetween == Between::kSyncwarp || kBetween == Between::kSyncwarpOnlyBeforeRead) __syncwarp();
    if (kBetween == Between::kShuffle) __shfl_sync(kAll, lane, 0);
    if (kBetween == Between::kPartialSyncwarp) __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);
    // BUG: no_syncwarp, no_syncwarp_before_overwrite, shuffle_in_place_of_syncwarp, syncwarp_of_other_lanes
    const int neighbor = words[warp][(lane + 1) % 32];
    if (kBetween != Between::kSyncwarpOnlyBeforeRead) __syncwarp();
    results[threadIdx.x * 3 + round] = neighbor;
  }
}

template <Between kBetween>
void run_neighbors() {
  std::vector<int> expected;
  for (int thread = 0; thread < 64; ++thread) {
    for (int round = 0; round < 3; ++round) expected.push_back((thread + 1) % 32 + round);
  }
  expect_equal(results_of(192, 1, 64, 0, neighbor_kernel<kBetween>), expected, 3);
}

DEVICE_CASE(warp_private_memory) { run_neighbors<Between::kSyncwarp>(); }
DEVICE_CASE(no_syncwarp) { run_neighbors<Between::kNothing>(); }
DEVICE_CASE(no_syncwarp_before_overwrite) { run_neighbors<Between::kSyncwarpOnlyBeforeRead>(); }
DEVICE_CASE(shuffle_in_place_of_syncwarp) { run_neighbors<Between::kShuffle>(); }
DEVICE_CASE(syncwarp_of_other_lanes) { run_neighbors<Between::kPartialSyncwarp>(); }

__global__ void many_barriers_kernel(int* results) {
  for (int i = 0; i < 1 << 20; ++i) __syncthreads();
  results[threadIdx.x] = 1;
}
DEVICE_CASE(too_many_barriers_to_count) { expect_equal(results_of(1, 1, 1, 0, many_barriers_kernel), repeated(1, 1)); }

__global__ void launching_kernel(int* results) {
  results[threadIdx.x] = deepclust::device::launch(deadlock_kernel, 1, 1, 0, nullptr, results) == cudaSuccess;
}
DEVICE_CASE(launch_in_kernel) { expect_equal(results_of(1, 1, 1, 0, launching_kernel), repeated(1, 1)); }

// Harmless from here on.

__global__ void exited_threads_kernel(int* results) {
  DEEPCLUST_SHARED(int, words, [64]);
  const int thread = threadIdx.x;
  results[thread] = 1;
  if (thread % 3 == 0) return;
  words[thread] = 1;
  __syncthreads();
  results[thread] = words[63 - thread];
  __syncthreads();
}
DEVICE_CASE(exited_threads_then_barrier) {
  expect_equal(results_of(64, 1, 64, 0, exited_threads_kernel), repeated(1, 64));
}

// Four groups of lanes loop for different numbers of rounds, with shuffles and memory of their own.
__global__ void disjoint_groups_kernel(int* results) {
  DEEPCLUST_SHARED(int, words, [32]);
  const int lane = threadIdx.x, group = lane / 8;
  const unsigned mask = 0xffu << group * 8;
  int value = lane;
  for (int round = 0; round <= group; ++round) {
    words[lane] = value;
    __syncwarp(mask);
    value = words[lane ^ 1] + __shfl_xor_sync(mask, 0, 4);
    __syncwarp(mask);
  }
  results[lane] = value;
}
DEVICE_CASE(disjoint_masks) {
  std::vector<int> expected;
  for (int lane = 0; lane < 32; ++lane) expected.push_back(lane / 8 % 2 == 0 ? lane ^ 1 : lane);
  expect_equal(warp_results_of(1, disjoint_groups_kernel), expected);
}

// Some lanes meet among themselves while the others already wait for all.
__global__ void partial_then_full_mask_kernel(int* results) {
  const int lane = threadIdx.x;
  int value = lane;
  if (lane % 16 < 5) value = __reduce_min_sync(lane < 16 ? 0x0000001fu : 0x001f0000u, lane);
  __syncwarp();
  if (lane >= 20) value += __shfl_sync(0xfff00000u, 100, 25);
  results[lane] = __shfl_sync(kAll, value, lane ^ 1);
}
DEVICE_CASE(partial_then_full_mask) {
  std::vector<int> expected;
  for (int lane = 0; lane < 32; ++lane) {
    const int source = lane ^ 1;
    expected.push_back((source % 16 < 5 ? source / 16 * 16 : source) + (source >= 20 ? 100 : 0));
  }
  expect_equal(warp_results_of(1, partial_then_full_mask_kernel), expected);
}

__device__ void meet() { __syncthreads(); }

// The same lines meet again and again: unrolled, from a function, in a condition that holds for the whole block.
__global__ void repeated_barriers_kernel(int* results, int rounds) {
  DEEPCLUST_SHARED(int, words, [64]);
  const int thread = threadIdx.x;
  int value = thread;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[thread] = value;
    __syncthreads();
    value = words[thread ^ 1];
    __syncthreads();
  }
  for (int i = 0; i < rounds; ++i) {
    words[thread] = value;
    meet();
    value = words[(thread + 1) % 64];
    meet();
    if (rounds > 2) meet();
  }
  // A compiler may compile the barrier between equal conditions twice.
  if (thread < 32) words[thread] = value;
  __syncthreads();
  if (thread < 32) value = words[31 - thread];
  results[thread] = value;
}
DEVICE_CASE(repeated_barriers) {
  std::vector<int> expected;
  for (int thread = 0; thread < 64; ++thread) expected.push_back(((thread < 32 ? 31 - thread : thread) + 3) % 64);
  expect_equal(results_of(64, 1, 64, 0, repeated_barriers_kernel, 3), expected);
}

// After an error of any kind the device works as before.
DEVICE_CASE(usable_after_errors) {
  for (const auto kernel :
       {diverged_lanes_kernel, outside_mask_kernel, deadlock_kernel, exit_while_awaited_kernel, barrier_kinds_kernel}) {
    bool failed = false;
    try {
      results_of(64, 1, 64, 0, kernel);
    } catch (const deepclust::emulator::Error&) {
      failed = true;
    }
    if (!failed) throw std::runtime_error("a faulty kernel ran without an error");
    run_neighbors<Between::kSyncwarp>();
  }
}

}  // namespace

// Sums over a grid whose last block adds what all blocks wrote. See tile.cu for the conventions.
#include "../../conformance/cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::results_of;

enum class Bug {
  kNone,
  kFenceByReaders,  // harmless
  kNoFenceBefore,
  kWriteAfterFence,
  kNoFenceAfter,
  kFlagReadEarly,
  kScratchReused,
  kHalfBlockBarrier,
  kNoBarrierBefore
};

constexpr int kThreads = 64, kBlocks = 5;

template <Bug kBug>
__device__ float block_sum(float value) {
  DEEPCLUST_SHARED(float, parts, [kThreads / 32]);
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) {
    // BUG: reduction_scratch_reused, reduction_half_block_barrier
    parts[threadIdx.x / 32] = value;
  }
  if (kBug == Bug::kHalfBlockBarrier) {
    // BUG: reduction_half_block_barrier
    if (threadIdx.x < kThreads / 2) __syncthreads();
  } else {
    __syncthreads();
  }
  value = 0;
  for (int part = 0; part < kThreads / 32; ++part) {
    // BUG: reduction_scratch_reused, reduction_half_block_barrier
    value += parts[part];
  }
  if (kBug != Bug::kScratchReused) __syncthreads();
  return value;
}

template <Bug kBug>
__global__ void sum_kernel(float* total, float* partial, unsigned* ticket, const float* x, int count) {
  DEEPCLUST_SHARED(bool, last);
  float sum = 0, squares = 0;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < count; i += gridDim.x * kThreads) {
    sum += x[i];
    squares += x[i] * x[i];
  }
  sum = block_sum<kBug>(sum);
  squares = block_sum<kBug>(squares);
  if (threadIdx.x == 0) {
    // BUG: reduction_no_fence_before_ticket, reduction_no_fence_after_ticket
    partial[blockIdx.x] = sum + squares;
    if (kBug != Bug::kNoFenceBefore) __threadfence();
    // BUG: reduction_flag_read_early
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    if (kBug != Bug::kNoFenceAfter) __threadfence();
  }
  if (kBug != Bug::kFlagReadEarly) __syncthreads();
  // BUG: reduction_flag_read_early
  if (!last) return;
  if (threadIdx.x == 0) {
    sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) {
      // BUG: reduction_no_fence_before_ticket, reduction_no_fence_after_ticket
      sum += partial[block];
    }
    *total = sum;
  }
}

template <Bug kBug>
void run() {
  std::vector<float> x;
  float expected = 0;
  for (int i = 0; i < 700; ++i) {
    x.push_back(static_cast<float>(i % 13 - 4));
    expected += x.back() + x.back() * x.back();
  }
  const DeviceBuffer<float> device_x(x, "x"), partial(kBlocks, "partial");
  const DeviceBuffer<unsigned> ticket({0}, "ticket");
  for (int launch = 0; launch < 2; ++launch) {  // the ticket counter resets itself
    expect_equal(
        results_of(1, kBlocks, kThreads, 0, sum_kernel<kBug>, partial.data(), ticket.data(), device_x.data(), 700),
        {expected}, 1);
  }
}

DEVICE_CASE(reduction) { run<Bug::kNone>(); }
DEVICE_CASE(reduction_no_fence_before_ticket) { run<Bug::kNoFenceBefore>(); }
DEVICE_CASE(reduction_no_fence_after_ticket) { run<Bug::kNoFenceAfter>(); }
DEVICE_CASE(reduction_flag_read_early) { run<Bug::kFlagReadEarly>(); }
DEVICE_CASE(reduction_scratch_reused) { run<Bug::kScratchReused>(); }
DEVICE_CASE(reduction_half_block_barrier) { run<Bug::kHalfBlockBarrier>(); }

// All threads of a block write, one draws the ticket, all threads of the last block read.
template <Bug kBug>
__global__ void rows_kernel(int* results, int* partial, unsigned* ticket) {
  DEEPCLUST_SHARED(bool, last);
  const int thread = threadIdx.x, place = blockIdx.x * kThreads + thread;
  // BUG: tickets_no_fence_before, tickets_no_fence_after, tickets_no_barrier_before
  partial[place] = static_cast<int>(blockIdx.x) + thread;
  if (kBug != Bug::kNoBarrierBefore) __syncthreads();
  if (thread == 0) {
    if (kBug != Bug::kNoFenceBefore) __threadfence();
    // BUG: tickets_write_after_fence
    if (kBug == Bug::kWriteAfterFence) partial[place] = static_cast<int>(blockIdx.x);
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    if (kBug != Bug::kNoFenceAfter && kBug != Bug::kFenceByReaders) __threadfence();
  }
  __syncthreads();
  if (!last) return;
  if (kBug == Bug::kFenceByReaders) __threadfence();
  int sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) {
    // BUG: tickets_no_fence_before, tickets_no_fence_after, tickets_no_barrier_before, tickets_write_after_fence
    sum += partial[block * kThreads + kThreads - 1 - thread];
  }
  results[thread] = sum;
}

template <Bug kBug>
void run_rows() {
  const DeviceBuffer<int> partial(kBlocks * kThreads, "partial");
  const DeviceBuffer<unsigned> ticket({0}, "ticket");
  std::vector<int> expected;
  for (int thread = 0; thread < kThreads; ++thread) {
    expected.push_back(kBlocks * (kBlocks - 1) / 2 + kBlocks * (kThreads - 1 - thread));
  }
  expect_equal(results_of(kThreads, kBlocks, kThreads, 0, rows_kernel<kBug>, partial.data(), ticket.data()), expected);
}

DEVICE_CASE(tickets) { run_rows<Bug::kNone>(); }
DEVICE_CASE(tickets_fence_by_readers) { run_rows<Bug::kFenceByReaders>(); }
DEVICE_CASE(tickets_write_after_fence) { run_rows<Bug::kWriteAfterFence>(); }
DEVICE_CASE(tickets_no_fence_before) { run_rows<Bug::kNoFenceBefore>(); }
DEVICE_CASE(tickets_no_fence_after) { run_rows<Bug::kNoFenceAfter>(); }
DEVICE_CASE(tickets_no_barrier_before) { run_rows<Bug::kNoBarrierBefore>(); }

// Two phases with a ticket each: blocks of one row of the grid meet first, then the last block of every row.
__global__ void two_tickets_kernel(int* total, int* partial, int* row_sums, unsigned* tickets) {
  DEEPCLUST_SHARED(bool, last, [2]);
  const int row = blockIdx.y;
  if (threadIdx.x == 0) {
    partial[row * gridDim.x + blockIdx.x] = static_cast<int>(blockIdx.x) + 10 * row;
    __threadfence();
    last[0] = atomicAdd(&tickets[row], 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last[0]) return;
  if (threadIdx.x == 0) {
    int sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) sum += partial[row * gridDim.x + block];
    row_sums[row] = sum;
    __threadfence();
    last[1] = atomicAdd(&tickets[gridDim.y], 1) == gridDim.y - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last[1] || threadIdx.x != 0) return;
  int sum = 0;
  for (unsigned other = 0; other < gridDim.y; ++other) sum += row_sums[other];
  *total = sum;
}

DEVICE_CASE(two_tickets) {
  const DeviceBuffer<int> partial(12, "partial"), row_sums(3, "row_sums");
  const DeviceBuffer<unsigned> tickets(std::vector<unsigned>(4, 0), "tickets");
  expect_equal(results_of(1, dim3(4, 3), 32, 0, two_tickets_kernel, partial.data(), row_sums.data(), tickets.data()),
               {3 * 6 + 4 * 30}, 1);
}

// A block of one warp: lane 0 draws the ticket, __syncwarp hands what it learnt to the others.
__global__ void warp_ticket_kernel(int* results, int* partial, unsigned* ticket) {
  const int lane = threadIdx.x;
  partial[blockIdx.x * 32 + lane] = static_cast<int>(blockIdx.x);
  __syncwarp();
  int last = 0;
  if (lane == 0) {
    __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  last = __shfl_sync(0xffffffffu, last, 0);
  __syncwarp();
  if (last == 0) return;
  int sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += partial[block * 32 + 31 - lane];
  results[lane] = sum;
}

DEVICE_CASE(ticket_of_a_warp) {
  const DeviceBuffer<int> partial(kBlocks * 32, "partial");
  const DeviceBuffer<unsigned> ticket({0}, "ticket");
  expect_equal(results_of(32, kBlocks, 32, 0, warp_ticket_kernel, partial.data(), ticket.data()),
               std::vector<int>(32, kBlocks * (kBlocks - 1) / 2));
}

enum class Chain { kOneThread, kFenceThenBarrier, kBarrierThenFence, kThirdBlockDoesNotLook, kNoFenceInSecond };

// Block 0 publishes a word by flag 0, block 1 passes that on by flag 1, block 2 relies on it. Blocks may run in any
// order: whoever does not see the flag does nothing.
template <Chain kChain>
__global__ void chain_kernel(int* results, int* word, int* flags) {
  DEEPCLUST_SHARED(bool, seen);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    // BUG: chain_third_block_does_not_look, chain_no_fence_in_second_block
    *word = 5;
    __threadfence();
    atomicExch(&flags[0], 1);
  }
  if (blockIdx.x == 1) {
    const unsigned last_thread = kChain == Chain::kOneThread || kChain == Chain::kNoFenceInSecond ? 0 : 40;
    if (threadIdx.x == 0) {
      seen = atomicAdd(&flags[0], 0) == 1;
      if (kChain != Chain::kBarrierThenFence && kChain != Chain::kNoFenceInSecond) __threadfence();
    }
    if (last_thread != 0) __syncthreads();
    if (threadIdx.x == last_thread && seen) {
      if (kChain != Chain::kOneThread && kChain != Chain::kNoFenceInSecond) __threadfence();
      atomicExch(&flags[1], 1);
    }
  }
  if (blockIdx.x == 2 && threadIdx.x == 0) {
    results[0] = 5;
    const bool looks = kChain != Chain::kThirdBlockDoesNotLook;
    const bool passed_on = looks && atomicAdd(&flags[1], 0) == 1;
    if (looks) __threadfence();
    if (passed_on || kChain == Chain::kThirdBlockDoesNotLook || kChain == Chain::kNoFenceInSecond) {
      // BUG: chain_third_block_does_not_look, chain_no_fence_in_second_block
      results[0] = *word;
    }
  }
}

template <Chain kChain>
void run_chain() {
  const DeviceBuffer<int> word({5}, "word"), flags({0, 0}, "flags");
  expect_equal(results_of(1, 3, 64, 0, chain_kernel<kChain>, word.data(), flags.data()), {5});
}

DEVICE_CASE(chain_by_one_thread) { run_chain<Chain::kOneThread>(); }
DEVICE_CASE(chain_with_fence_then_barrier) { run_chain<Chain::kFenceThenBarrier>(); }
DEVICE_CASE(chain_with_barrier_then_fence) { run_chain<Chain::kBarrierThenFence>(); }
DEVICE_CASE(chain_third_block_does_not_look) { run_chain<Chain::kThirdBlockDoesNotLook>(); }
DEVICE_CASE(chain_no_fence_in_second_block) { run_chain<Chain::kNoFenceInSecond>(); }

}  // namespace

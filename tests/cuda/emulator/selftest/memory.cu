// Global memory: bounds, alignment, initialization, blocks that race. See tile.cu for the conventions.
#include "../../conformance/cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::require_success;
using conformance::results_of;
using deepclust::device::launch;
using deepclust::device::shared_array;
using deepclust::device::shared_next;

__global__ void copy_kernel(float* results, const float* values, int shift) {
  // BUG: read_past_end, read_before_begin, read_uninitialised
  results[threadIdx.x] = values[static_cast<int>(threadIdx.x) + shift];
}

void run_copy(int shift) {
  const std::vector<float> values(32, 2);
  const DeviceBuffer<float> input(values, "values");
  expect_equal(results_of(32, 1, 32, 0, copy_kernel, input.data(), shift), values);
}

DEVICE_CASE(read_past_end) { run_copy(1); }
DEVICE_CASE(read_before_begin) { run_copy(-1); }
DEVICE_CASE(read_uninitialised) {
  const DeviceBuffer<float> nothing(32, "nothing");
  expect_equal(results_of(32, 1, 32, 0, copy_kernel, nothing.data(), 0), std::vector<float>(32, 2));
}

__global__ void write_kernel(float* results, int shift) {
  // BUG: write_past_end
  results[static_cast<int>(threadIdx.x) + shift] = 2;
}
DEVICE_CASE(write_past_end) { expect_equal(results_of(32, 1, 32, 0, write_kernel, 1), std::vector<float>(32, 2)); }

__global__ void accumulate_kernel(float* results) {
  // BUG: accumulate_into_uninitialised
  results[threadIdx.x] += 2;
}
DEVICE_CASE(accumulate_into_uninitialised) {
  expect_equal(results_of(32, 1, 32, 0, accumulate_kernel), std::vector<float>(32, 2));
}

__global__ void atomic_kernel(float* results) {
  // BUG: atomic_on_uninitialised
  atomicAdd(&results[threadIdx.x], 2.0f);
}
DEVICE_CASE(atomic_on_uninitialised) {
  expect_equal(results_of(32, 1, 32, 0, atomic_kernel), std::vector<float>(32, 2));
}

__global__ void host_memory_kernel(float* results, const float* values) {
  // BUG: read_of_host_memory
  results[threadIdx.x] = values[threadIdx.x];
}
DEVICE_CASE(read_of_host_memory) {
  const std::vector<float> values(32, 2);
  expect_equal(results_of(32, 1, 32, 0, host_memory_kernel, values.data()), values);
}

__global__ void vector_kernel(float* results, const float* values) {
  // BUG: misaligned_float4
  const float4 quad = *reinterpret_cast<const float4*>(values + threadIdx.x * 5);
  results[threadIdx.x] = quad.x + quad.y + quad.z + quad.w;
}
DEVICE_CASE(misaligned_float4) {
  const std::vector<float> values(5 * 32, 2);
  const DeviceBuffer<float> input(values, "values");
  expect_equal(results_of(32, 1, 32, 0, vector_kernel, input.data()), std::vector<float>(32, 8));
}

__global__ void last_double_kernel(float* results, const float* values) {
  // BUG: double_past_end
  results[threadIdx.x] = static_cast<float>(reinterpret_cast<const double*>(values)[threadIdx.x]);
}
DEVICE_CASE(double_past_end) {  // the last one begins inside
  const std::vector<float> values(63, 0);
  const DeviceBuffer<float> input(values, "values");
  expect_equal(results_of(32, 1, 32, 0, last_double_kernel, input.data()), std::vector<float>(32, 0));
}

__global__ void misaligned_atomic_kernel(float* results) {
  DEEPCLUST_SHARED(unsigned, words, [3]);
  words[threadIdx.x] = 2;
  __syncthreads();
  // BUG: misaligned_atomic
  atomicAdd(reinterpret_cast<unsigned long long*>(reinterpret_cast<unsigned char*>(words) + 4), 1);
  results[threadIdx.x] = static_cast<float>(words[0]);
}
DEVICE_CASE(misaligned_atomic) {
  expect_equal(results_of(3, 1, 3, 0, misaligned_atomic_kernel), std::vector<float>(3, 2));
}

__global__ void other_stack_kernel(float* results) {
  DEEPCLUST_SHARED(const float*, pointer);
  const float own = 2 + static_cast<float>(threadIdx.x);
  if (threadIdx.x == 0) pointer = &own;
  __syncthreads();
  // BUG: read_of_other_threads_variable
  results[threadIdx.x] = *pointer;
  __syncthreads();
}
DEVICE_CASE(read_of_other_threads_variable) {
  expect_equal(results_of(32, 1, 32, 0, other_stack_kernel), std::vector<float>(32, 2));
}

DEVICE_CASE(memset_past_end) {
  const DeviceBuffer<float> values(32, "values");
  require_success(deepclust::device::memset_async(values.data() + 1, 0, 32 * sizeof(float), nullptr));
}

__global__ void large_static_kernel(float* results) {
  DEEPCLUST_SHARED(float, words, [20000]);
  words[threadIdx.x] = 2;
  results[threadIdx.x] = words[threadIdx.x];
}
DEVICE_CASE(static_shared_too_large) {
  expect_equal(results_of(32, 1, 32, 0, large_static_kernel), std::vector<float>(32, 2));
}

template <bool kGlobal>
__global__ void forget_kernel(float* results) {
  DEEPCLUST_SHARED(float, words, [32]);
  words[threadIdx.x] = 2;
  results[threadIdx.x] = 2;
  // BUG: sync_forget_of_different_ranges, sync_forget_of_global
  deepclust::device::sync_forget(kGlobal ? results : words, kGlobal || threadIdx.x == 0 ? 32 : 16);
}
DEVICE_CASE(sync_forget_of_different_ranges) {
  expect_equal(results_of(32, 1, 32, 0, forget_kernel<false>), std::vector<float>(32, 2));
}
DEVICE_CASE(sync_forget_of_global) {
  expect_equal(results_of(32, 1, 32, 0, forget_kernel<true>), std::vector<float>(32, 2));
}

__global__ void uninitialised_shared_kernel(float* results) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  float* words = shared_array<float>(memory, 0, 32);
  if (threadIdx.x > 0) words[threadIdx.x] = 2;
  __syncthreads();
  // BUG: uninitialised_shared
  results[threadIdx.x] = words[31 - threadIdx.x];
}
DEVICE_CASE(uninitialised_shared) {
  expect_equal(results_of(32, 1, 32, shared_next<float>(0, 32), uninitialised_shared_kernel),
               std::vector<float>(32, 2));
}

// What a block leaves in shared memory is nothing that the next one may read.
__global__ void left_by_last_block_kernel(float* results) {
  DEEPCLUST_SHARED(float, word);
  if (blockIdx.x == 0 || gridDim.x == 1) word = 2;
  // BUG: shared_left_by_other_block
  results[blockIdx.x] = word;
}
DEVICE_CASE(shared_left_by_other_block) {
  expect_equal(results_of(2, 2, 1, 0, left_by_last_block_kernel), std::vector<float>(2, 2));
}

__global__ void too_long_kernel(float* results, int count) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  // BUG: shared_array_longer_than_launch
  float* words = shared_array<float>(memory, 0, count);
  words[threadIdx.x] = 2;
  results[threadIdx.x] = words[threadIdx.x];
}
DEVICE_CASE(shared_array_longer_than_launch) {
  expect_equal(results_of(32, 1, 32, shared_next<float>(0, 32), too_long_kernel, 1024), std::vector<float>(32, 2));
}

enum class Update { kAtomic, kPlain, kMixed, kStore };

template <Update kUpdate>
__global__ void update_kernel(int* total) {
  if (kUpdate == Update::kPlain || (kUpdate == Update::kMixed && blockIdx.x == 3)) {
    // BUG: plain_update_across_blocks, plain_and_atomic_update
    *total += 1;
  } else if (kUpdate == Update::kStore && blockIdx.x == 3) {
    // BUG: store_and_atomic_update
    *total = 1;
  } else {
    // BUG: plain_and_atomic_update, store_and_atomic_update
    atomicAdd(total, 1);
  }
}

template <Update kUpdate>
void run_update() {
  const DeviceBuffer<int> total({0}, "total");
  require_success(launch(update_kernel<kUpdate>, 7, 1, 0, nullptr, total.data()));
  require_success(launch(update_kernel<kUpdate>, 7, 1, 0, nullptr, total.data()));  // launches do not race
  expect_equal(total.to_host(), {14}, 1);
}

DEVICE_CASE(atomics_across_blocks) { run_update<Update::kAtomic>(); }
DEVICE_CASE(plain_update_across_blocks) { run_update<Update::kPlain>(); }
DEVICE_CASE(plain_and_atomic_update) { run_update<Update::kMixed>(); }
DEVICE_CASE(store_and_atomic_update) { run_update<Update::kStore>(); }

// One block reads what another writes in the same launch.
__global__ void neighbor_block_kernel(int* results, int* values) {
  const unsigned block = blockIdx.x;
  // BUG: read_of_other_block
  if (threadIdx.x == 0) values[block] = 1;
  // BUG: read_of_other_block
  results[block] = values[(block + 1) % gridDim.x];
}
DEVICE_CASE(read_of_other_block) {
  const DeviceBuffer<int> values({1, 1, 1}, "values");
  expect_equal(results_of(3, 3, 1, 0, neighbor_block_kernel, values.data()), {1, 1, 1});
}

// Two warps read a word, then one of them writes it.
__global__ void overwrite_kernel(int* results, int* word) {
  if (threadIdx.x % 32 != 0) return;
  // BUG: overwritten_while_other_warp_reads
  results[threadIdx.x / 32] = *word;
  // BUG: overwritten_while_other_warp_reads
  if (threadIdx.x == 32) *word = 1;
}
DEVICE_CASE(overwritten_while_other_warp_reads) {
  const DeviceBuffer<int> word({1}, "word");
  expect_equal(results_of(2, 1, 64, 0, overwrite_kernel, word.data()), {1, 1});
}

// Threads of one block write the same word, with no barrier between.
__global__ void same_word_kernel(int* results) {
  // BUG: two_threads_write_one_word
  *results = static_cast<int>(threadIdx.x);
}
DEVICE_CASE(two_threads_write_one_word) { expect_equal(results_of(1, 1, 64, 0, same_word_kernel), {63}); }

}  // namespace

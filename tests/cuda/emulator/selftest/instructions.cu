// The smallest uses of cp.async, ldmatrix and mma, with what can go wrong. See tile.cu for the conventions.
#include "../../conformance/cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::results_of;
using conformance::warp_results_of;
using deepclust::device::cp_async16;
using deepclust::device::cp_async_commit;
using deepclust::device::cp_async_wait;
using deepclust::device::float_to_tf32;
using deepclust::device::mma_m16n8k8_tf32;
using deepclust::device::shared_array;
using deepclust::device::shared_next;

enum class Bug {
  kNoWait,
  kNoBarrier,
  kNoCommit,
  kMisalignedSource,
  kMisalignedTarget,
  kPastSource,
  kOf17Bytes,
  kToGlobal,
  kOfShared,
  kTwice,
  kWriteInFlight,
};

// Every thread copies four floats and reads four: its own, or its neighbor's where only the barrier is missing.
template <Bug kBug>
__global__ void copy_kernel(float* results, const float* source) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  float* copies = shared_array<float>(memory, 0, 128);
  const int thread = threadIdx.x;
  const float* from = source + thread * 4 + (kBug == Bug::kMisalignedSource ? 1 : 0);
  if (kBug == Bug::kPastSource) from += 4;
  if (kBug == Bug::kOfShared) from = copies;
  float* to = copies + thread * 4 + (kBug == Bug::kMisalignedTarget ? 1 : 0);
  if (kBug == Bug::kToGlobal) to = results + thread * 4;
  // BUG: copy_of_misaligned_source, copy_to_misaligned_target, copy_past_source, copy_of_17_bytes, copy_to_global,
  // copy_of_shared
  cp_async16(to, from, kBug == Bug::kOf17Bytes ? 17 : 16);
  // BUG: copy_twice
  if (kBug == Bug::kTwice) cp_async16(to, from, 16);
  // BUG: copy_then_write
  if (kBug == Bug::kWriteInFlight) to[1] = 5;
  if (kBug != Bug::kNoCommit) cp_async_commit();
  // BUG: copy_past_source
  if (kBug != Bug::kNoWait) cp_async_wait<0>();
  if (kBug != Bug::kNoBarrier) __syncthreads();
  const int other = kBug == Bug::kNoBarrier ? (thread + 1) % 32 : thread;
  // BUG: copy_read_without_wait, copy_read_without_barrier, copy_read_without_commit
  for (int i = 0; i < 4; ++i) results[other * 4 + i] = copies[other * 4 + i];
}

template <Bug kBug>
void run_copy() {
  const std::vector<float> source(128, 5);
  const DeviceBuffer<float> device_source(source, "source");
  expect_equal(results_of(128, 1, 32, shared_next<float>(0, 128), copy_kernel<kBug>, device_source.data()), source);
}

DEVICE_CASE(copy_read_without_wait) { run_copy<Bug::kNoWait>(); }
DEVICE_CASE(copy_read_without_barrier) { run_copy<Bug::kNoBarrier>(); }
DEVICE_CASE(copy_read_without_commit) { run_copy<Bug::kNoCommit>(); }
DEVICE_CASE(copy_of_misaligned_source) { run_copy<Bug::kMisalignedSource>(); }
DEVICE_CASE(copy_to_misaligned_target) { run_copy<Bug::kMisalignedTarget>(); }
DEVICE_CASE(copy_past_source) { run_copy<Bug::kPastSource>(); }
DEVICE_CASE(copy_of_17_bytes) { run_copy<Bug::kOf17Bytes>(); }
DEVICE_CASE(copy_to_global) { run_copy<Bug::kToGlobal>(); }
DEVICE_CASE(copy_of_shared) { run_copy<Bug::kOfShared>(); }
DEVICE_CASE(copy_twice) { run_copy<Bug::kTwice>(); }
DEVICE_CASE(copy_then_write) { run_copy<Bug::kWriteInFlight>(); }

__global__ void ldmatrix_kernel(uint32_t* results, const uint32_t* rows) {
  uint32_t registers[4];
  // BUG: ldmatrix_of_global
  deepclust::device::ldmatrix_x4(registers, rows + threadIdx.x * 4);
  for (int i = 0; i < 4; ++i) results[i * 32 + threadIdx.x] = registers[i];
}

DEVICE_CASE(ldmatrix_of_global) {
  const std::vector<uint32_t> rows(128, 5);
  const DeviceBuffer<uint32_t> device_rows(rows, "rows");
  expect_equal(warp_results_of(4, ldmatrix_kernel, device_rows.data()), rows);
}

// The tf32 instruction takes operands that float_to_tf32 rounded.
template <bool kConvertA, bool kConvertB>
__global__ void tf32_kernel(float* results, float a, float b) {
  const uint32_t a_bits = kConvertA ? float_to_tf32(a) : __float_as_uint(a);
  const uint32_t b_bits = kConvertB ? float_to_tf32(b) : __float_as_uint(b);
  const uint32_t a_registers[4] = {a_bits, a_bits, a_bits, a_bits};
  float d[4] = {};
  // BUG: mma_a_not_converted, mma_b_not_converted
  mma_m16n8k8_tf32(d, a_registers, b_bits, b_bits);
  for (int i = 0; i < 4; ++i) results[i * 32 + threadIdx.x] = d[i];
}

template <bool kConvertA, bool kConvertB>
void run_tf32() {
  expect_equal(warp_results_of(4, tf32_kernel<kConvertA, kConvertB>, 1 + 0x1p-15f, 2 - 0x1p-15f),
               std::vector<float>(128, 16));
}

DEVICE_CASE(mma_converted) { run_tf32<true, true>(); }
DEVICE_CASE(mma_a_not_converted) { run_tf32<false, true>(); }
DEVICE_CASE(mma_b_not_converted) { run_tf32<true, false>(); }

// The lanes of a warp must meet in one mma, not in two that look alike.
__global__ void diverged_mma_kernel(float* results) {
  const uint32_t one = __float_as_uint(1.0f), a[4] = {one, one, one, one};
  float d[4] = {};
  if (threadIdx.x < 16) {
    // BUG: mma_of_diverged_lanes
    mma_m16n8k8_tf32(d, a, one, one);
  } else {
    // BUG: mma_of_diverged_lanes
    mma_m16n8k8_tf32(d, a, one, one);
  }
  for (int i = 0; i < 4; ++i) results[i * 32 + threadIdx.x] = d[i];
}

DEVICE_CASE(mma_of_diverged_lanes) {
  expect_equal(warp_results_of(4, diverged_mma_kernel), std::vector<float>(128, 8));
}

}  // namespace

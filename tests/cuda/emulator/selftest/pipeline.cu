// A tiled product with cp.async into two stages, ldmatrix and mma: the row sums of a b^T in bfloat16. See tile.cu for
// the conventions.
#include "../../conformance/cases.h"

namespace {

using conformance::DeviceBuffer;
using deepclust::device::cp_async16;
using deepclust::device::cp_async_commit;
using deepclust::device::cp_async_wait;
using deepclust::device::shared_array;
using deepclust::device::shared_next;

enum class Bug {
  kNone,
  kNoBarrierAfterWait,
  kNoBarrierBeforeRefill,
  kWaitsForOneGroupLess,
  kMisalignedRow,
};

constexpr int kRows = 32, kColumns = 16, kDepth = 16, kThreads = 64, kPitch = kDepth + 8;
constexpr int kStageSize = (kRows + kColumns) * kPitch;
constexpr size_t kSharedBytes = shared_next<__nv_bfloat16>(0, 2 * kStageSize);

__device__ void fetch(__nv_bfloat16* stage, const __nv_bfloat16* a, const __nv_bfloat16* b, int rows, int columns,
                      int depth, int first_column, int first_k) {
  for (int i = threadIdx.x; i < (kRows + kColumns) * 2; i += kThreads) {
    const int line = i / 2, k = first_k + i % 2 * 8;
    const bool is_row = line < kRows;
    const int index = is_row ? static_cast<int>(blockIdx.x) * kRows + line : first_column + line - kRows;
    const int bytes = index < (is_row ? rows : columns) && k < depth ? 16 : 0;  // depth is a multiple of 8
    const __nv_bfloat16* source = is_row ? a : b;
    // BUG: pipeline_no_barrier_before_refill
    cp_async16(stage + line * kPitch + i % 2 * 8, bytes > 0 ? source + index * depth + k : source, bytes);
  }
}

template <Bug kBug>
__global__ void pipeline_kernel(float* sums, const __nv_bfloat16* a, const __nv_bfloat16* b, int rows, int columns,
                                int depth) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  auto* stages = shared_array<__nv_bfloat16>(memory, 0, 2 * kStageSize);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int k_steps = (depth + kDepth - 1) / kDepth, steps = k_steps * ((columns + kColumns - 1) / kColumns);
  float products[2][4] = {}, row_sums[2] = {};
  fetch(stages, a, b, rows, columns, depth, 0, 0);
  cp_async_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      fetch(stages + (step + 1) % 2 * kStageSize, a, b, rows, columns, depth, (step + 1) / k_steps * kColumns,
            (step + 1) % k_steps * kDepth);
    }
    cp_async_commit();
    cp_async_wait<kBug == Bug::kWaitsForOneGroupLess ? 2 : 1>();
    if (kBug != Bug::kNoBarrierAfterWait) __syncthreads();
    const __nv_bfloat16* stage = stages + step % 2 * kStageSize;
    const int skew = kBug == Bug::kMisalignedRow ? 4 : 0;
    uint32_t row_registers[4], column_registers[4];
    // BUG: pipeline_no_barrier_after_wait, pipeline_waits_for_one_group_less, pipeline_misaligned_row
    deepclust::device::ldmatrix_x4(row_registers, stage + (warp * 16 + lane % 16) * kPitch + lane / 16 * 8 + skew);
    // BUG: pipeline_no_barrier_after_wait
    deepclust::device::ldmatrix_x4(column_registers,
                                   stage + (kRows + lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8);
    for (int half = 0; half < 2; ++half) {
      deepclust::device::mma_m16n8k16_bf16(products[half], row_registers, column_registers[half * 2],
                                           column_registers[half * 2 + 1]);
    }
    if (step % k_steps == k_steps - 1) {
      for (auto& half : products) {
        for (int i = 0; i < 4; ++i) {
          row_sums[i / 2] += half[i];
          half[i] = 0;
        }
      }
    }
    if (kBug != Bug::kNoBarrierBeforeRefill) __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    for (int offset = 1; offset < 4; offset *= 2) row_sums[i] += __shfl_xor_sync(0xffffffffu, row_sums[i], offset);
    const int row = blockIdx.x * kRows + warp * 16 + i * 8 + lane / 4;
    if (lane % 4 == 0 && row < rows) sums[row] = row_sums[i];
  }
}

template <Bug kBug>
void run() {
  constexpr int kM = 41, kN = 35, kK = 40;  // no multiples of the tile
  std::vector<float> expected(kM, 0);
  std::vector<__nv_bfloat16> a, b;
  for (int i = 0; i < kM * kK; ++i) a.push_back(__float2bfloat16(static_cast<float>(i * i % 7 - 3)));
  for (int i = 0; i < kN * kK; ++i) b.push_back(__float2bfloat16(static_cast<float>(i * i % 11 - 5)));
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) {
      for (int k = 0; k < kK; ++k) expected[i] += __bfloat162float(a[i * kK + k]) * __bfloat162float(b[j * kK + k]);
    }
  }
  const DeviceBuffer<__nv_bfloat16> device_a(a, "a"), device_b(b, "b");
  conformance::expect_equal(
      conformance::results_of(kM, (kM + kRows - 1) / kRows, kThreads, kSharedBytes, pipeline_kernel<kBug>,
                              device_a.data(), device_b.data(), kM, kN, kK),
      expected, kM);
}

DEVICE_CASE(pipeline) { run<Bug::kNone>(); }
DEVICE_CASE(pipeline_no_barrier_after_wait) { run<Bug::kNoBarrierAfterWait>(); }
DEVICE_CASE(pipeline_no_barrier_before_refill) { run<Bug::kNoBarrierBeforeRefill>(); }
DEVICE_CASE(pipeline_waits_for_one_group_less) { run<Bug::kWaitsForOneGroupLess>(); }
DEVICE_CASE(pipeline_misaligned_row) { run<Bug::kMisalignedRow>(); }

}  // namespace

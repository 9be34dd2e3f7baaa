// A tiled product with wmma fragments: the row sums of a b^T, in bfloat16 or tf32. See tile.cu for the conventions.
#include <type_traits>

#include "../../conformance/cases.h"

namespace {

namespace wmma = nvcuda::wmma;
using conformance::DeviceBuffer;
using deepclust::device::shared_array;
using deepclust::device::shared_next;
using Tf32 = wmma::precision::tf32;

enum class Bug {
  kNone,
  kNoBarrierAfterLoad,
  kNoBarrierBeforeOverwrite,
  kNoSyncwarpAfterStore,
  kNoSyncwarpBeforeStore,  // harmless: the barriers of the next product come between
  kUnguardedRow,
  kNotConverted,
  kMisalignedPointer,
  kWrongPitch,
  kLanesDisagree,
};

constexpr int kRows = 32, kColumns = 16, kDepth = 16, kThreads = 64;
constexpr int kPitch = kDepth + 8, kProductPitch = kColumns + 4;

template <class Precision>
struct Layout {
  static constexpr bool kIsTf32 = std::is_same<Precision, Tf32>::value;
  using Element = typename std::conditional<kIsTf32, float, Precision>::type;
  static constexpr int kStep = kIsTf32 ? 8 : 16;
  static constexpr size_t kTilesAt = 0, kTilesCount = (kRows + kColumns) * kPitch;
  static constexpr size_t kProductsAt = shared_next<Element>(kTilesAt, kTilesCount),
                          kProductsCount = kRows * kProductPitch;
  static constexpr size_t kBytes = shared_next<float>(kProductsAt, kProductsCount);
};

template <class Precision, Bug kBug>
__device__ typename Layout<Precision>::Element rounded(float value) {
  if constexpr (Layout<Precision>::kIsTf32) {
    return kBug == Bug::kNotConverted ? value : wmma::__float_to_tf32(value);
  } else {
    return static_cast<Precision>(value);
  }
}

template <class Precision, Bug kBug>
__global__ void fragment_kernel(float* sums, const float* a, const float* b, int rows, int columns, int depth) {
  using L = Layout<Precision>;
  constexpr int kStep = L::kStep;
  DEEPCLUST_DYNAMIC_SHARED(memory);
  auto* tiles = shared_array<typename L::Element>(memory, L::kTilesAt, L::kTilesCount);
  float* products = shared_array<float>(memory, L::kProductsAt, L::kProductsCount);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_row = blockIdx.x * kRows;
  auto* warp_tile = tiles + warp * 16 * kPitch;
  float* warp_products = products + warp * 16 * kProductPitch;
  if (kBug == Bug::kMisalignedPointer) warp_tile += 8 / sizeof(*warp_tile);
  if (kBug == Bug::kLanesDisagree && lane == 7) warp_tile += kPitch * 2;
  const int pitch = kBug == Bug::kWrongPitch ? kPitch + 1 : kPitch;
  float sum = 0;  // of half a row
  for (int first_column = 0; first_column < columns; first_column += kColumns) {
    wmma::fragment<wmma::accumulator, 16, 16, kStep, float> accumulator;
    wmma::fill_fragment(accumulator, 0.0f);
    for (int k0 = 0; k0 < depth; k0 += kDepth) {
      for (int i = threadIdx.x; i < (kRows + kColumns) * kDepth; i += kThreads) {
        const int line = i / kDepth, k = k0 + i % kDepth;
        float value = 0;
        if (line < kRows && (kBug == Bug::kUnguardedRow || first_row + line < rows) && k < depth) {
          // BUG: fragment_unguarded_row
          value = a[(first_row + line) * depth + k];
        } else if (line >= kRows && first_column + line - kRows < columns && k < depth) {
          value = b[(first_column + line - kRows) * depth + k];
        }
        // BUG: fragment_no_barrier_after_load, fragment_no_barrier_before_overwrite
        tiles[line * kPitch + i % kDepth] = rounded<Precision, kBug>(value);
      }
      if (kBug != Bug::kNoBarrierAfterLoad) __syncthreads();
      for (int k = 0; k < kDepth; k += kStep) {
        wmma::fragment<wmma::matrix_a, 16, 16, kStep, Precision, wmma::row_major> row_fragment;
        wmma::fragment<wmma::matrix_b, 16, 16, kStep, Precision, wmma::col_major> column_fragment;
        // BUG: fragment_no_barrier_after_load, fragment_misaligned_pointer, fragment_wrong_pitch,
        // fragment_lanes_disagree
        wmma::load_matrix_sync(row_fragment, warp_tile + k, pitch);
        wmma::load_matrix_sync(column_fragment, tiles + kRows * kPitch + k, kPitch);
        // BUG: fragment_not_converted
        wmma::mma_sync(accumulator, row_fragment, column_fragment, accumulator);
      }
      if (kBug != Bug::kNoBarrierBeforeOverwrite) __syncthreads();
    }
    wmma::store_matrix_sync(warp_products, accumulator, kProductPitch, wmma::mem_row_major);
    if (kBug != Bug::kNoSyncwarpAfterStore) __syncwarp();
    for (int c = 0; c < kColumns / 2; ++c) {
      // BUG: fragment_no_syncwarp_after_store
      sum += warp_products[lane / 2 * kProductPitch + lane % 2 * 8 + c];
    }
    if (kBug != Bug::kNoSyncwarpBeforeStore) __syncwarp();
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  const int row = first_row + warp * 16 + lane / 2;
  if (lane % 2 == 0 && row < rows) sums[row] = sum;
}

template <class Precision, Bug kBug>
void run() {
  constexpr int kM = 41, kN = 35, kK = 20;  // no multiples of the tile
  const float unit = kBug == Bug::kNotConverted ? 1 + 0x1p-15f : 1;
  std::vector<float> a, b, expected(kM, 0);
  for (int i = 0; i < kM * kK; ++i) a.push_back(static_cast<float>(i * i % 7 - 3) * unit);
  for (int i = 0; i < kN * kK; ++i) b.push_back(static_cast<float>(i * i % 11 - 5));
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) {
      for (int k = 0; k < kK; ++k) expected[i] += a[i * kK + k] * b[j * kK + k];
    }
  }
  const DeviceBuffer<float> device_a(a, "a"), device_b(b, "b");
  conformance::expect_equal(
      conformance::results_of(kM, (kM + kRows - 1) / kRows, kThreads, Layout<Precision>::kBytes,
                              fragment_kernel<Precision, kBug>, device_a.data(), device_b.data(), kM, kN, kK),
      expected, kM);
}

DEVICE_CASE(fragment_bfloat16) { run<__nv_bfloat16, Bug::kNone>(); }
DEVICE_CASE(fragment_tf32) { run<Tf32, Bug::kNone>(); }
DEVICE_CASE(fragment_no_barrier_after_load) { run<__nv_bfloat16, Bug::kNoBarrierAfterLoad>(); }
DEVICE_CASE(fragment_no_barrier_before_overwrite) { run<__nv_bfloat16, Bug::kNoBarrierBeforeOverwrite>(); }
DEVICE_CASE(fragment_no_syncwarp_after_store) { run<__nv_bfloat16, Bug::kNoSyncwarpAfterStore>(); }
DEVICE_CASE(fragment_no_syncwarp_before_store) { run<__nv_bfloat16, Bug::kNoSyncwarpBeforeStore>(); }
DEVICE_CASE(fragment_unguarded_row) { run<__nv_bfloat16, Bug::kUnguardedRow>(); }
DEVICE_CASE(fragment_not_converted) { run<Tf32, Bug::kNotConverted>(); }
DEVICE_CASE(fragment_misaligned_pointer) { run<__nv_bfloat16, Bug::kMisalignedPointer>(); }
DEVICE_CASE(fragment_wrong_pitch) { run<__nv_bfloat16, Bug::kWrongPitch>(); }
DEVICE_CASE(fragment_lanes_disagree) { run<__nv_bfloat16, Bug::kLanesDisagree>(); }

}  // namespace

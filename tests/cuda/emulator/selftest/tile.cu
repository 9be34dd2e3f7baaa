// A tiled product through shared memory: of every row of x, the sum of its products with the rows of another label.
// A parameter plants a bug. A comment "BUG: case" stands above each statement of which the error must name one.
#include "../../conformance/cases.h"

namespace {

using conformance::DeviceBuffer;
using deepclust::device::shared_array;
using deepclust::device::shared_next;

enum class Bug {
  kNone,
  kRedundantBarrier,  // harmless
  kNoBarrierAfterLoad,
  kNoBarrierBeforeOverwrite,
  kNoBarrierBeforeLabels,
  kUnwrittenPadding,
  kPastLastArray,
  kReadPastLastArray,
  kIntoNextArray,
  kUnguardedRow,
  kDivergentBarrier,
  kDivergentBarrierOnOneLine,
  kHalfBlockBarrier,
  kHalfReduction,
};

constexpr int kTile = 16, kDepth = 8, kPitch = kTile + 1, kTileSize = kDepth * kPitch, kThreads = 64;
constexpr size_t kTilesAt = 0, kLabelsAt = shared_next<float>(kTilesAt, 2 * kTileSize);
constexpr size_t kSharedBytes = shared_next<int>(kLabelsAt, kTile);

template <Bug kBug>
__device__ void load_tile(float* tile, const float* x, int rows, int depth, int first_row, int first_k) {
  for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
    const int row = first_row + i / kDepth, k = first_k + i % kDepth;
    float value = 0;
    if (k < depth && (kBug == Bug::kUnguardedRow || row < rows)) {
      // BUG: tile_unguarded_row
      value = x[row * depth + k];
    }
    if (kBug == Bug::kUnwrittenPadding && k >= depth) continue;
    // BUG: tile_no_barrier_before_overwrite, tile_no_barrier_after_load, tile_half_block_barrier
    tile[i % kDepth * kPitch + i / kDepth] = value;
  }
}

template <Bug kBug>
__global__ void tile_kernel(float* sums, const float* x, const int* labels, int rows, int depth) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  float* tiles = shared_array<float>(memory, kTilesAt, 2 * kTileSize);
  int* tile_labels = shared_array<int>(memory, kLabelsAt, kTile);
  const int thread = threadIdx.x, row = thread / 4, quarter = thread % 4, first_row = blockIdx.x * kTile;
  const int label = first_row + row < rows ? labels[first_row + row] : -1;
  float sum = 0;
  for (int first_column = 0; first_column < rows; first_column += kTile) {
    if (thread < kTile) {
      const int column = first_column + thread;
      // BUG: tile_no_barrier_before_labels
      tile_labels[thread] = column < rows ? labels[column] : -1;
    }
    if (kBug == Bug::kPastLastArray && thread == 0) {
      // BUG: tile_past_last_array
      tile_labels[kTile] = 0;
    }
    if (kBug == Bug::kReadPastLastArray && thread == 0) {
      // BUG: tile_read_past_last_array
      sum += static_cast<float>(tile_labels[kTile]);
    }
    if (kBug == Bug::kIntoNextArray && thread == 0) {
      // BUG: tile_into_next_array
      tiles[2 * kTileSize] = 0;
    }
    float products[4] = {};
    for (int k0 = 0; k0 < depth; k0 += kDepth) {
      load_tile<kBug>(tiles, x, rows, depth, first_row, k0);
      load_tile<kBug>(tiles + kTileSize, x, rows, depth, first_column, k0);
      if (kBug != Bug::kNoBarrierAfterLoad) __syncthreads();
      if (kBug == Bug::kRedundantBarrier) __syncthreads();
      for (int k = 0; k < kDepth; ++k) {
        // BUG: tile_unwritten_padding, tile_no_barrier_before_overwrite, tile_no_barrier_after_load,
        // tile_half_block_barrier
        const float value = tiles[k * kPitch + row];
        for (int c = 0; c < 4; ++c) {
          // BUG: tile_no_barrier_before_overwrite, tile_no_barrier_after_load, tile_half_block_barrier
          products[c] += value * tiles[kTileSize + k * kPitch + quarter + 4 * c];
        }
      }
      if (kBug == Bug::kDivergentBarrier) {
        if (quarter < 2) {
          // BUG: tile_divergent_barrier
          __syncthreads();
        } else {
          // BUG: tile_divergent_barrier
          __syncthreads();
        }
      } else if (kBug == Bug::kDivergentBarrierOnOneLine) {
        // BUG: tile_divergent_barrier_on_one_line
        sum += quarter < 2 ? __syncthreads_or(0) : __syncthreads_or(0);
      } else if (kBug == Bug::kHalfBlockBarrier) {
        // BUG: tile_half_block_barrier
        if (thread < kThreads / 2) __syncthreads();
      } else if (kBug != Bug::kNoBarrierBeforeOverwrite) {
        deepclust::device::sync_forget(tiles, 2 * kTileSize);
      }
    }
    for (int c = 0; c < 4; ++c) {
      const int column = quarter + 4 * c;
      if (first_column + column < rows && tile_labels[column] != label) sum += products[c];
    }
    if (kBug != Bug::kNoBarrierBeforeLabels) __syncthreads();
  }
  for (int offset = kBug == Bug::kHalfReduction ? 1 : 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  }
  if (quarter == 0 && first_row + row < rows) sums[first_row + row] = sum;
}

template <Bug kBug>
void run() {
  constexpr int kRows = 40, kColumns = 12;  // no multiples of the tile
  std::vector<float> x, expected(kRows, 0);
  std::vector<int> labels;
  for (int i = 0; i < kRows * kColumns; ++i) x.push_back(static_cast<float>(i * i % 7 - 3));
  for (int i = 0; i < kRows; ++i) labels.push_back(i % 3);
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kRows; ++j) {
      for (int k = 0; k < kColumns; ++k) {
        if (labels[i] != labels[j]) expected[i] += x[i * kColumns + k] * x[j * kColumns + k];
      }
    }
  }
  const DeviceBuffer<float> device_x(x, "x");
  const DeviceBuffer<int> device_labels(labels, "labels");
  conformance::expect_equal(
      conformance::results_of(kRows, (kRows + kTile - 1) / kTile, kThreads, kSharedBytes, tile_kernel<kBug>,
                              device_x.data(), device_labels.data(), kRows, kColumns),
      expected, kRows);
}

DEVICE_CASE(tile) { run<Bug::kNone>(); }
DEVICE_CASE(tile_redundant_barrier) { run<Bug::kRedundantBarrier>(); }
DEVICE_CASE(tile_no_barrier_after_load) { run<Bug::kNoBarrierAfterLoad>(); }
DEVICE_CASE(tile_no_barrier_before_overwrite) { run<Bug::kNoBarrierBeforeOverwrite>(); }
DEVICE_CASE(tile_no_barrier_before_labels) { run<Bug::kNoBarrierBeforeLabels>(); }
DEVICE_CASE(tile_unwritten_padding) { run<Bug::kUnwrittenPadding>(); }
DEVICE_CASE(tile_past_last_array) { run<Bug::kPastLastArray>(); }
DEVICE_CASE(tile_read_past_last_array) { run<Bug::kReadPastLastArray>(); }
DEVICE_CASE(tile_into_next_array) { run<Bug::kIntoNextArray>(); }
DEVICE_CASE(tile_unguarded_row) { run<Bug::kUnguardedRow>(); }
DEVICE_CASE(tile_divergent_barrier) { run<Bug::kDivergentBarrier>(); }
DEVICE_CASE(tile_divergent_barrier_on_one_line) { run<Bug::kDivergentBarrierOnOneLine>(); }
DEVICE_CASE(tile_half_block_barrier) { run<Bug::kHalfBlockBarrier>(); }
DEVICE_CASE(tile_half_reduction) { run<Bug::kHalfReduction>(); }

}  // namespace

// First kernel of mining: normalized rows, what else a row needs to know, and whether all are finite.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/constants.h"
#include "core/cuda/block.cuh"
#include "core/cuda/candidate.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"
#include "mining/cuda/batch_hard_mining.cuh"

namespace deepclust::mining {

constexpr int kPrepareThreads = 128;
constexpr int kRowsPerPrepareBlock = kPrepareThreads / 4;  // one quad each
constexpr int kMaxSplits = 16;
constexpr int kMaxCandidates = 32;  // of a row, class and split
constexpr int kOpenRows = 4;        // rows that share a pass of the exact search

enum RowValue { kTeacherBias, kStudentBias, kSelfSquared, kTeacherScale, kStudentScale, kRowValues };
enum Kind { kNegative, kPositive };

// What one split found out about one row. A count above kMaxCandidates says that there were too many.
template <class T>
struct SearchResult {
  T floor;    // no negative with a score below is the nearest
  T ceiling;  // no positive with a score above is the farthest
  int count[2];
};

template <class P>
struct MiningArguments {
  using T = typename P::Accumulator;
  using Row = typename RowElementOf<P>::type;
  static constexpr bool kScaled = sizeof(typename P::Element) == 2;  // products are of rows scaled by powers of two
  const Row* input[2];                                               // (N, D) teacher, student
  Row* rows[2];                                                      // (N, row_depth)
  typename P::Element* split[4];  // (N, row_depth) teacher high, low, student high, low
  T* values;                      // (kRowValues, N)
  T* largest_squares;             // (2, prepare_blocks)
  Candidate<T>* candidates;       // (N, splits, 2, kMaxCandidates)
  SearchResult<T>* results;       // (splits, N)
  unsigned* tickets;              // (row_blocks + 1,)
  double* sums;                   // (row_blocks, kHsdSums)
  MiningOutputs out;
  int64_t count, depth, row_depth;
  int64_t first_row, end_row;  // anchors
  int row_blocks, splits, prepare_blocks;
  bool normalize;

  __device__ __forceinline__ T value(RowValue which, int64_t row) const { return values[which * count + row]; }

  __device__ __forceinline__ ScaledRow<Row> row(int which, int64_t index) const {
    ScaledRow<Row> row{rows[which] + index * row_depth, T(1)};
    if constexpr (sizeof(Row) == 2) row.scale = value(which == 0 ? kTeacherScale : kStudentScale, index);
    return row;
  }

  __device__ __forceinline__ Candidate<T>* list(int64_t row, int split_index, int kind) const {
    return candidates + ((row * splits + split_index) * 2 + kind) * kMaxCandidates;
  }

  __device__ __forceinline__ TileOperand<P> operand(int which) const {
    if constexpr (P::kParts == 2) {
      return {{split[2 * which], split[2 * which + 1]}, count};
    } else {
      return {{rows[which]}, count};
    }
  }
};

// Writes row i of teacher (0) or student (1) and returns its squared norm, infinite if the row is not finite; by a
// quad.
template <class P>
__device__ typename P::Accumulator prepare_row(const MiningArguments<P>& in, int which, int64_t i) {
  using T = typename P::Accumulator;
  using Row = typename MiningArguments<P>::Row;
  const Row* source = in.input[which] + i * in.depth;
  const Norm<T> norm = norm_of<T>(source, in.depth, in.normalize);
  const T inverse_norm = in.normalize ? static_cast<T>(1 / larger(norm.value, kMinNorm)) : T(1);
  // Half-precision products are of rows with a norm near 1, so that they neither overflow nor vanish. Elements are
  // kept but for a power of two. float16 inputs need none: products of their whole range fit in float32.
  constexpr bool kIsBf16 = std::is_same<Row, __nv_bfloat16>::value;
  const double size = kIsBf16 ? norm.value : norm.value * inverse_norm;
  const int exponent = (kIsBf16 || P::kParts == 2) && norm.finite && size > 0 ? ilogb(size) : 0;
  ScaledRow<Row> row{in.rows[which] + i * in.row_depth, T(1)};
  T scale = 1;  // of the products
  if constexpr (MiningArguments<P>::kScaled) scale = ldexpf(sizeof(Row) == 2 ? inverse_norm : T(1), exponent);
  if constexpr (sizeof(Row) == 2) row.scale = scale;
  T squared = 0;
  for (int64_t chunk = quad_lane(); chunk < in.row_depth / Chunk<Row>::kCount; chunk += 4) {
    Chunk<Row> stored;
#pragma unroll
    for (int e = 0; e < Chunk<Row>::kCount; ++e) {
      const int64_t k = chunk * Chunk<Row>::kCount + e;
      T element = k < in.depth ? widen(source[k]) : T(0);
      if constexpr (sizeof(Row) != 2) element *= inverse_norm;
      if constexpr (kIsBf16) element = ldexpf(element, -exponent);
      stored.element[e] = narrow<Row>(element);
      const T value = row.value(stored.element[e]);
      squared += value * value;
      if constexpr (P::kParts == 2) {
        const T scaled = ldexpf(value, -exponent);
        const auto high = narrow<typename P::Element>(scaled);
        in.split[2 * which][i * in.row_depth + k] = high;
        in.split[2 * which + 1][i * in.row_depth + k] = narrow<typename P::Element>(scaled - widen(high));
      }
    }
    stored.store(in.rows[which] + i * in.row_depth, chunk);
  }
  squared = quad_sum(squared);
  if (quad_lane() == 0) {
    static_cast<T*>(in.out.inverse_norm)[which * in.count + i] = inverse_norm;
    in.values[(kTeacherBias + which) * in.count + i] = squared / 2;
    if (MiningArguments<P>::kScaled) in.values[(kTeacherScale + which) * in.count + i] = scale;
  }
  return norm.finite ? squared : Limits<T>::kInfinity;
}

template <class P>
__global__ void __launch_bounds__(kPrepareThreads, 4) prepare_rows_kernel(const MiningArguments<P> in) {
  using T = typename P::Accumulator;
  using Row = typename MiningArguments<P>::Row;
  const int64_t i = int64_t{blockIdx.x} * kRowsPerPrepareBlock + threadIdx.x / 4;
  T squares[2] = {0, 0};
  if (i < in.count) {
    T scale[2] = {1, 1};
    for (int which = 0; which < 2; ++which) {
      squares[which] = prepare_row(in, which, i);
      if constexpr (sizeof(Row) == 2) {
        __syncwarp(quad_mask());
        scale[which] = in.value(which == 0 ? kTeacherScale : kStudentScale, i);
      }
    }
    // Every lane reads the chunks that it wrote itself.
    const ScaledRow<Row> teacher{in.rows[0] + i * in.row_depth, scale[0]};
    const ScaledRow<Row> student[1] = {{in.rows[1] + i * in.row_depth, scale[1]}};
    T squared[1];
    squared_distances(teacher, student, in.row_depth, squared);
    if (quad_lane() == 0) in.values[kSelfSquared * in.count + i] = larger(squared[0], T(kMinSquaredDistance));
  }
  DEEPCLUST_SHARED(T, largest, [2][kPrepareThreads / 32]);
  for (int which = 0; which < 2; ++which) {
    const T warp_largest = warp_max(squares[which]);
    if (threadIdx.x % 32 == 0) largest[which][threadIdx.x / 32] = warp_largest;
  }
  __syncthreads();
  if (threadIdx.x < 2) {
    T block_largest = 0;
    for (int warp = 0; warp < kPrepareThreads / 32; ++warp)
      block_largest = larger(block_largest, largest[threadIdx.x][warp]);
    in.largest_squares[threadIdx.x * in.prepare_blocks + blockIdx.x] = block_largest;
  }
  if (blockIdx.x == 0) {
    for (int ticket = threadIdx.x; ticket <= in.row_blocks; ticket += kPrepareThreads) in.tickets[ticket] = 0;
  }
}

}  // namespace deepclust::mining

// First kernel of nearest_neighbors: the rows as tile products read them, and what else a row needs to know.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/constants.h"
#include "core/cuda/candidate.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"

namespace deepclust::neighbors {

constexpr int kPrepareThreads = 128;
constexpr int kRowsPerPrepareBlock = kPrepareThreads / 4;  // one quad each

enum Side { kQuery, kBank };

template <class P>
struct NeighborsArguments {
  using T = typename P::Accumulator;
  using Element = typename P::Element;
  using Row = typename RowElementOf<P>::type;
  const Row* input[2];     // (B, D) query, (M, D) bank
  Element* rows[2];        // (kParts, B, row_depth), (kParts, M, row_depth)
  int64_t count[2];        // B, M
  const int64_t* exclude;  // (B,) or null
  const bool* valid;       // (M,) or null
  T* query_norms;          // (B,)
  T* bank_scales;          // (M,)
  Candidate<T>* lists;     // (B, splits, capacity)
  int* counts;             // (B, splits)
  unsigned* bad_rows;      // ()
  Row* cosines;            // (B, neighbors)
  int64_t* indices;        // (B, neighbors)
  int64_t depth, row_depth;
  int neighbors, capacity, splits;

  __device__ __forceinline__ TileOperand<P> operand(Side side) const {
    TileOperand<P> operand{{}, count[side]};
#pragma unroll
    for (int part = 0; part < P::kParts; ++part) operand.part[part] = rows[side] + part * count[side] * row_depth;
    return operand;
  }

  // A score is at most about the query's norm.
  __device__ __forceinline__ T highest_score(T query_norm) const { return 2 * query_norm + Limits<T>::kTiny; }

  // If the score of one row is lower than that of another by more than this, so is its cosine, rounded to T. Above 0.
  __device__ __forceinline__ T margin(T query_norm) const {
    const T rounding = (depth + 32) * Limits<T>::kEpsilon + P::kSplitError;
    return 2 * rounding * query_norm + Limits<T>::kTiny;
  }
};

__device__ __forceinline__ float times_power(float x, int exponent) { return ldexpf(x, exponent); }
__device__ __forceinline__ double times_power(double x, int exponent) { return ldexp(x, exponent); }

// Rows are divided by two to this power, so that products neither overflow nor vanish; elements keep their digits.
__device__ __forceinline__ int exponent_of(double norm) {
  constexpr int kLargest = 1023;  // a norm may overflow
  return norm > 0 ? smaller(ilogb(norm), kLargest) : 0;
}

// Writes row i of one side, by a quad. Rows of the bank that are not candidates become zeros.
template <class P>
__device__ void prepare_row(const NeighborsArguments<P>& in, Side side, int64_t i) {
  using T = typename P::Accumulator;
  using Element = typename P::Element;
  const typename NeighborsArguments<P>::Row* source = in.input[side] + i * in.depth;
  const bool present = side == kQuery || in.valid == nullptr || in.valid[i];
  Norm<T> norm{true, 0};
  if (present) norm = norm_of<T>(source, in.depth, true);
  const bool usable = present && norm.finite;
  // Products of the whole range of float16 fit in float32, and its smallest elements would lose digits.
  constexpr bool kIsF16 = std::is_same<typename NeighborsArguments<P>::Row, __half>::value;
  const int exponent = usable && !kIsF16 ? exponent_of(norm.value) : 0;
  const TileOperand<P> target = in.operand(side);
  T squared = 0;
  for (int64_t chunk = quad_lane(); chunk < in.row_depth / Chunk<Element>::kCount; chunk += 4) {
    Chunk<Element> parts[P::kParts];
#pragma unroll
    for (int e = 0; e < Chunk<Element>::kCount; ++e) {
      const int64_t k = chunk * Chunk<Element>::kCount + e;
      T value = usable && k < in.depth ? times_power(widen(source[k]), -exponent) : T(0);
      squared += value * value;
#pragma unroll
      for (int part = 0; part < P::kParts; ++part) {
        parts[part].element[e] = narrow<Element>(value);
        value -= widen(parts[part].element[e]);
      }
    }
#pragma unroll
    for (int part = 0; part < P::kParts; ++part) {
      parts[part].store(const_cast<Element*>(target.part[part]) + i * in.row_depth, chunk);
    }
  }
  const T size = sqrt(quad_sum(squared));
  if (quad_lane() != 0) return;
  if (side == kQuery) {
    in.query_norms[i] = norm.finite ? size : Limits<T>::kNan;
  } else {
    in.bank_scales[i] = usable ? 1 / larger(size, static_cast<T>(ldexp(kMinNorm, -exponent))) : Limits<T>::kNan;
    if (!norm.finite) atomicOr(in.bad_rows, 1u);
  }
}

template <class P>
__global__ void __launch_bounds__(kPrepareThreads) neighbors_prepare_kernel(const NeighborsArguments<P> in) {
  const int64_t row = int64_t{blockIdx.x} * kRowsPerPrepareBlock + threadIdx.x / 4;
  if (row < in.count[kQuery]) {
    prepare_row(in, kQuery, row);
  } else if (row < in.count[kQuery] + in.count[kBank]) {
    prepare_row(in, kBank, row - in.count[kQuery]);
  }
}

}  // namespace deepclust::neighbors

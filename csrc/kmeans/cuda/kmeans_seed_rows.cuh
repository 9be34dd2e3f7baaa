// What the kernels of k-means++ share, and the first of them: it checks the rows and measures them for the cosine.
#pragma once

#include <cstdint>

#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "kmeans/cuda/kmeans_distance.cuh"

namespace deepclust::kmeans {

template <class T>
constexpr int kChunk = Chunk<T>::kCount;

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kQuads = kThreads / 4;
constexpr int kRows = 2;  // of a quad at a time: each chunk of a candidate that it loads serves both
constexpr int kTileRows = kQuads * kRows;
constexpr int kBlocksPerMultiprocessor = 2;

constexpr double kLeastLargestCost = 1e-280;  // so that the scale stays finite

// Every field is 0 before the first launch. A last block leaves the ticket at 0.
struct SeedState {
  unsigned long long largest;  // bits of the largest cost, or at first of the largest weight
  long long best;              // the chosen one of the candidates
  unsigned ticket;
  unsigned not_finite;  // whether any row is not
};

template <class T>
struct KmeansSeedArguments {
  const T* rows;          // (N, row_depth)
  T* norms;               // (N,) for the cosine
  T* scales;              // (N,) 1 / max(norm, 1e-12), for the cosine
  T* least;               // (N,)
  int64_t* integers;      // (N,)
  T* distances;           // (C, N)
  int64_t* candidates;    // (C,)
  T* candidate_rows;      // (groups, chunks, group, kChunk) as they are compared; the last group repeats its last one
  int64_t* block_sums;    // (C, blocks)
  double* block_largest;  // (C, blocks)
  int64_t* part_sums;     // (parts,)
  SeedState* state;       // one
  int64_t* places;        // (K,)
  const double* uniform;  // (K, C)
  const double* weights;  // (N,) or null
  double span;            // scale times largest cost: their sum fits int64
  int64_t count, row_depth, num_candidates, part_rows;  // N, D in whole chunks, C, rows of a part
  bool cosine;

  __device__ __forceinline__ ComparedRow<T> row(int64_t i) const {
    if (!cosine) return {rows + i * row_depth, T(1), false};
    return {rows + i * row_depth, scales[i], norms[i] < T(kMinNorm)};
  }

  // Never decreases with the distance, so that the least distance has the least cost.
  __device__ __forceinline__ double cost(T distance, int64_t i) const {
    const double wide = static_cast<double>(distance);
    const double each = cosine ? larger(wide, 0.0) : wide * wide;
    return weights == nullptr ? each : each * weights[i];
  }

  __device__ __forceinline__ double scale() const {
    return span / larger(__longlong_as_double(static_cast<long long>(state->largest)), kLeastLargestCost);
  }
};

// What is too large is left out: there is none where costs are finite, as they have to be.
__device__ __forceinline__ int64_t integer_of(double scaled) {
  return scaled < 0x1p62 ? static_cast<int64_t>(scaled) : 0;
}

template <class T>
__device__ __forceinline__ Values<T> loaded(const T* row /* 16-byte aligned */, int64_t chunk) {
  const Chunk<T> elements = Chunk<T>::load(row, chunk);
  Values<T> result;
#pragma unroll
  for (int e = 0; e < kChunk<T>; ++e) result.value[e] = elements.element[e];
  return result;
}

// Sums of four values over a quad, as quad_sum adds them; lane q has that of values[q].
template <class T>
__device__ __forceinline__ T quad_sums(const T* values /* (4,) */) {
  const bool odd = quad_lane() % 2 != 0, upper = quad_lane() / 2 != 0;
  T low = odd ? values[1] : values[0], high = odd ? values[3] : values[2];
  low += __shfl_xor_sync(quad_mask(), odd ? values[0] : values[1], 1);
  high += __shfl_xor_sync(quad_mask(), odd ? values[2] : values[3], 1);
  return (upper ? high : low) + __shfl_xor_sync(quad_mask(), upper ? low : high, 2);
}

// Checks the rows, one to a quad, copies them where it has to, and measures them for the cosine. It finds the largest
// weight, which without weights is 1.
template <class T, class Row>
__global__ void __launch_bounds__(kThreads)
    prepare_rows_kernel(const KmeansSeedArguments<T> in, const Row* features /* (N, depth) */, int64_t depth,
                        T* copies /* (N, row_depth) or null */) {
  const int64_t first = int64_t{blockIdx.x} * kQuads, i = first + threadIdx.x / 4;
  double largest = 1;
  if (in.weights != nullptr) {
    largest = largest_of<kWarps>(in.weights + first, static_cast<int>(smaller<int64_t>(kQuads, in.count - first)));
  }
  if (threadIdx.x == 0 && (in.weights != nullptr || blockIdx.x == 0)) {
    const double positive = larger(largest, 0.0);  // not -0, whose bits are large
    atomicMax(&in.state->largest, static_cast<unsigned long long>(__double_as_longlong(positive)));
  }
  if (i >= in.count) return;
  const Row* source = features + i * depth;
  const Norm<T> norm = norm_of<T>(source, depth, true);
  for (int64_t k = quad_lane(); copies != nullptr && k < in.row_depth; k += 4) {
    copies[i * in.row_depth + k] = k < depth ? widen(source[k]) : T(0);
  }
  if (quad_lane() != 0) return;
  if (!norm.finite) atomicOr(&in.state->not_finite, 1u);
  if (!in.cosine) return;
  in.norms[i] = static_cast<T>(norm.value);
  in.scales[i] = ComparedRow<T>::make(nullptr, norm.value, true).scale;
}

}  // namespace deepclust::kmeans

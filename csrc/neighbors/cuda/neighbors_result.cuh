// Last kernel of nearest_neighbors: the lists of all splits become the k nearest, by cosines summed in float64.
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
#include "neighbors/cuda/neighbors_rows.cuh"
#include "neighbors/cuda/neighbors_selection.cuh"

namespace deepclust::neighbors {

constexpr int kResultThreads = 128, kResultWarps = kResultThreads / 32;
constexpr int kMostCompared = 512;  // candidates of a query with an exact cosine: a power of two, above the largest k

// The lists of a query, one of each split, as a thread block counts them.
template <class T>
struct BlockCandidates {
  const Candidate<T>* lists;  // (splits, capacity)
  const int* counts;          // (splits,)
  int splits, capacity;

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    for (int split = threadIdx.x / 32; split < splits; split += kResultWarps) {
      const Candidate<T>* list = lists + int64_t{split} * capacity;
      for (int i = threadIdx.x % 32; i < counts[split]; i += 32) visit(list[i]);
    }
  }

  template <class Predicate>
  __device__ __forceinline__ int count(Predicate predicate) const {
    DEEPCLUST_SHARED(int, partial, [kResultWarps]);
    int found = 0;
    for_each([&](const Candidate<T>& candidate) { found += predicate(candidate) ? 1 : 0; });
    found = warp_sum(found);
    __syncthreads();  // all have read what an earlier call left
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = found;
    __syncthreads();
    found = 0;
    for (int warp = 0; warp < kResultWarps; ++warp) found += partial[warp];
    return found;
  }
};

// The best candidate of every thread of a block.
template <class T>
struct BestOfThreads {
  Candidate<T> own;

  template <class Predicate>
  __device__ __forceinline__ int count(Predicate predicate) const {
    return __syncthreads_count(predicate(own));
  }
};

// Which candidates to compare, at most kMostCompared, by the block. If k threads have a candidate above some score, so
// has the query: one look at the lists gives a bound, and mostly a good one.
template <class T>
__device__ Cut<T> find_compared(const BlockCandidates<T>& candidates, int k, T highest, T margin) {
  BestOfThreads<T> best{{-Limits<T>::kInfinity, 0}};
  candidates.for_each([&](const Candidate<T>& candidate) { best.own.score = larger(best.own.score, candidate.score); });
  const T lowest = score_of_rank(best, k, -Limits<T>::kInfinity, highest);
  const Cut<T> cut{lowest - margin, -1};
  const int kept = candidates.count([&](const Candidate<T>& candidate) { return cut.keeps(candidate); });
  return kept <= kMostCompared ? cut : find_cut(candidates, k, kMostCompared, lowest, highest, margin);
}

// The cosine of two finite rows, by a quad. Sums of products of float32 are exact to rounding in float64 and cannot
// overflow there; float64 rows are divided by powers of two.
template <class Row>
__device__ double exact_cosine(const Row* query /* (depth,) */, const Row* other /* (depth,) */, int64_t depth) {
  int exponent[2] = {0, 0};
  if constexpr (std::is_same<Row, double>::value) {
    exponent[0] = exponent_of(norm_of<double>(query, depth, true).value);
    exponent[1] = exponent_of(norm_of<double>(other, depth, true).value);
  }
  double product = 0, squares[2] = {0, 0};
  for (int64_t k = quad_lane(); k < depth; k += 4) {
    double x = widen(query[k]), y = widen(other[k]);
    if constexpr (std::is_same<Row, double>::value) {
      x = ldexp(x, -exponent[0]);
      y = ldexp(y, -exponent[1]);
    }
    product += x * y;
    squares[0] += x * x;
    squares[1] += y * y;
  }
  double norm[2];
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    norm[side] = larger(sqrt(quad_sum(squares[side])), ldexp(kMinNorm, -exponent[side]));
  }
  return quad_sum(product) / (norm[0] * norm[1]);
}

// Sorts by cosine, the largest first, then by column, the lowest first; `count` is a power of two.
template <class T>
__device__ void sort_neighbors(T* cosine /* (count,) */, int* column /* (count,) */, int count) {
  for (int size = 2; size <= count; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int i = threadIdx.x; i < count / 2; i += kResultThreads) {
        const int first = 2 * i - i % stride, second = first + stride;
        const bool wrong_order =
            cosine[first] < cosine[second] || (cosine[first] == cosine[second] && column[first] > column[second]);
        if (wrong_order == ((first & size) == 0)) {
          const T other_cosine = cosine[first];
          cosine[first] = cosine[second];
          cosine[second] = other_cosine;
          const int other_column = column[first];
          column[first] = column[second];
          column[second] = other_column;
        }
      }
      __syncthreads();
    }
  }
}

// One thread block for each query.
template <class P>
__global__ void __launch_bounds__(kResultThreads) neighbors_result_kernel(const NeighborsArguments<P> in) {
  using T = typename P::Accumulator;
  using Row = typename NeighborsArguments<P>::Row;
  DEEPCLUST_SHARED(T, cosine, [kMostCompared]);
  DEEPCLUST_SHARED(int, column, [kMostCompared]);
  DEEPCLUST_SHARED(unsigned, filled, [1]);
  const int64_t i = blockIdx.x;
  Row* const cosines = in.cosines + i * in.neighbors;
  int64_t* const indices = in.indices + i * in.neighbors;
  const T norm = in.query_norms[i];
  if (!(norm >= 0) || *in.bad_rows != 0) {
    for (int n = threadIdx.x; n < in.neighbors; n += kResultThreads) {
      cosines[n] = narrow<Row>(Limits<T>::kNan);
      indices[n] = -1;
    }
    return;
  }
  // Step 1: the candidates that may be among the nearest, by their scores and a margin for rounding.
  const BlockCandidates<T> candidates{in.lists + i * in.splits * in.capacity, in.counts + i * in.splits, in.splits,
                                      in.capacity};
  const Cut<T> cut = find_compared(candidates, in.neighbors, in.highest_score(norm), in.margin(norm));
  if (threadIdx.x == 0) filled[0] = 0;
  __syncthreads();
  candidates.for_each([&](const Candidate<T>& candidate) {  // in any order: they are sorted afterwards
    if (cut.keeps(candidate)) column[atomicAdd(&filled[0], 1u)] = static_cast<int>(candidate.column);
  });
  __syncthreads();
  // Step 2: their exact cosines, padded to a power of two, by four threads each.
  const int count = static_cast<int>(filled[0]);
  int padded = 1;
  while (padded < count) padded *= 2;
  for (int n = threadIdx.x / 4; n < padded; n += kResultThreads / 4) {
    T found = -Limits<T>::kInfinity;
    if (n < count) {
      found = static_cast<T>(
          exact_cosine(in.input[kQuery] + i * in.depth, in.input[kBank] + column[n] * in.depth, in.depth));
    }
    if (quad_lane() != 0) continue;
    cosine[n] = found;
    if (n >= count) column[n] = kLastColumn;
  }
  __syncthreads();
  // Step 3: in order, of which the first are the result.
  sort_neighbors(cosine, column, padded);
  for (int n = threadIdx.x; n < in.neighbors; n += kResultThreads) {
    cosines[n] = narrow<Row>(n < count ? cosine[n] : -Limits<T>::kInfinity);
    indices[n] = n < count ? column[n] : -1;
  }
}

}  // namespace deepclust::neighbors

// The row functor of kmeans_assign, and the decision for a row.
#pragma once

#include <cstdint>

#include "core/constants.h"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"
#include "kmeans/cuda/kmeans_distance.cuh"

namespace deepclust::kmeans {

template <class P>
struct KmeansAssignArguments {
  using Row = typename P::Element;
  using T = typename P::Accumulator;
  const Row* features;   // (N, row_depth)
  const Row* centroids;  // (K, row_depth)
  T* norms;              // (K,) infinite only where a centroid is not finite
  T* biases;             // (K,) |y|^2 / 2, for the cosine 0
  T* scales;             // (K,) 1, for the cosine 1 / max(|y|, 1e-12)
  int64_t* labels;       // (N,)
  Row* distances;        // (N,)
  int64_t count, clusters, row_depth;
  bool cosine;
};

// What products say about a row: the best score, its column, and the best of all other scores.
template <class T>
struct BestScore {
  T score, second;
  int column;

  __device__ __forceinline__ void add(T other_score, T other_second, int other_column) {
    second = larger(larger(second, other_second), smaller(other_score, score));
    if (other_score > score) {
      score = other_score;
      column = other_column;
    }
  }
};

// Row functor. A score is x.y scale - bias, larger for a nearer centroid y.
template <class P, int kWarps>
struct ScoreSearch {
  using Gemm = TileGemm<P, kWarps, 1>;
  using T = typename P::Accumulator;
  static constexpr int kSlots = 2;  // rows of a quad

  const KmeansAssignArguments<P>& in;
  BestScore<T> best[kSlots];

  __device__ __forceinline__ explicit ScoreSearch(const KmeansAssignArguments<P>& arguments) : in(arguments) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) best[slot] = {-Limits<T>::kInfinity, -Limits<T>::kInfinity, -1};
  }

  __device__ __forceinline__ void operator()(int64_t first_column, typename Gemm::Products& products) {
#pragma unroll
    for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
      const int64_t j = first_column + Gemm::column_of(c / 2, c % 2);
      const bool present = j < in.clusters;
      const T scale = present ? in.scales[j] : T(0);
      const T bias = present ? in.biases[j] : Limits<T>::kInfinity;
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const T score = products[0][c / 2][slot * 2 + c % 2] * scale - bias;
        best[slot].add(score, -Limits<T>::kInfinity, static_cast<int>(j));
      }
    }
  }

  // Of all columns, in all lanes of the quad.
  __device__ __forceinline__ BestScore<T> merged(int slot) const {
    BestScore<T> result = best[slot];
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      const T score = __shfl_xor_sync(quad_mask(), result.score, offset);
      const T second = __shfl_xor_sync(quad_mask(), result.second, offset);
      const int column = __shfl_xor_sync(quad_mask(), result.column, offset);
      result.add(score, second, column);
    }
    return result;
  }
};

// How near centroid c is to a row, by a quad.
template <class P>
__device__ double closeness(const KmeansAssignArguments<P>& in, const ComparedRow<typename P::Element>& x, int64_t c) {
  const bool is_short = in.cosine && in.norms[c] < typename P::Accumulator(kMinNorm);
  return closeness<typename P::Element>(x, {in.centroids + c * in.row_depth, in.scales[c], is_short}, in.row_depth,
                                        in.cosine);
}

// The nearest centroid found so far; label -1: none.
struct Nearest {
  double value;
  int label;

  // Ties go to the lowest index.
  __device__ __forceinline__ void add(double other_value, int other_label) {
    if (other_label < 0) return;
    if (label >= 0 && (other_value < value || (other_value == value && other_label > label))) return;
    value = other_value;
    label = other_label;
  }
};

// Whether the best score of a row is best beyond the rounding of scores, and of the distances that decide in the end;
// `nearest` is then its column. By a quad.
template <class P>
__device__ bool decide_by_scores(const KmeansAssignArguments<P>& in, int64_t i,
                                 const BestScore<typename P::Accumulator>& best, typename P::Accumulator largest_norm,
                                 Nearest& nearest) {
  using T = typename P::Accumulator;
  using Compared = ComparedRow<typename P::Element>;
  if (best.column < 0) return false;
  const T rounding = (in.row_depth + 32) * Limits<T>::kEpsilon + P::kSplitError;
  const T underflow = in.row_depth * Limits<T>::kTiny;
  const auto* row = in.features + i * in.row_depth;
  T margin, value;
  if (in.cosine) {
    const Norm<T> norm = norm_of<T>(row, in.row_depth, true);
    const T size = static_cast<T>(norm.value), reach = size * largest_norm;
    if (!norm.finite || norm.value < kMinNorm || !(reach <= Limits<T>::kMax)) return false;
    nearest = {closeness(in, Compared::make(row, norm.value, true), best.column), best.column};
    margin = 2 * (4 * rounding * size + underflow * (1 + size + largest_norm) / T(kMinNorm));
    value = size;
  } else {
    nearest = {closeness(in, Compared::make(row, 1, false), best.column), best.column};
    value = static_cast<T>(-nearest.value);
    const T reach = value + 2 * largest_norm;  // of |x| + |y|, since |x| is at most the distance and a norm
    margin = 2 * (rounding * (reach * reach) + underflow * (1 + reach));
  }
  return margin <= Limits<T>::kMax && best.second < best.score - margin;
}

// The nearest of all centroids by differences alone, and none if the row is not finite; by a warp, in all its lanes.
template <class P>
__device__ Nearest decide_by_all(const KmeansAssignArguments<P>& in, int64_t i) {
  using T = typename P::Accumulator;
  const auto* row = in.features + i * in.row_depth;
  const Norm<T> norm = norm_of<T>(row, in.row_depth, true);
  const auto x = ComparedRow<typename P::Element>::make(row, norm.value, in.cosine);
  Nearest nearest{Limits<double>::kNan, -1};
  for (int64_t c = threadIdx.x % 32 / 4; norm.finite && c < in.clusters; c += 8) {
    nearest.add(closeness(in, x, c), static_cast<int>(c));
  }
  for (int offset = 4; offset < 32; offset *= 2) {
    const double value = __shfl_xor_sync(kWholeWarp, nearest.value, offset);
    const int label = __shfl_xor_sync(kWholeWarp, nearest.label, offset);
    nearest.add(value, label);
  }
  return nearest;
}

}  // namespace deepclust::kmeans

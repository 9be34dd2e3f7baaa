// How near two rows are, by their differences: what k-means decides by on CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/constants.h"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"

namespace deepclust::kmeans {

// |x - y| where the squares leave the range of T: relative to the largest difference. By a quad.
template <class Row>
__device__ double scaled_distance(const Row* x /* (depth,) */, const Row* y /* (depth,) */, int64_t depth) {
  const auto difference = [&](int64_t k) {
    return static_cast<double>(widen(x[k])) - static_cast<double>(widen(y[k]));
  };
  double largest = 0;
  for (int64_t k = quad_lane(); k < depth; k += 4) largest = larger(fabs(difference(k)), largest);
  largest = quad_max(largest);
  if (!(largest > 0 && largest <= Limits<double>::kMax)) return largest;
  const int exponent = ilogb(largest);
  double sum = 0;
  for (int64_t k = quad_lane(); k < depth; k += 4) {
    const double scaled = ldexp(difference(k), -exponent);
    sum += scaled * scaled;
  }
  return ldexp(sqrt(quad_sum(sum)), exponent);
}

// Never contracted into a multiply-add: equal rows must have distance 0.
__device__ __forceinline__ float product_of(float x, float y) { return __fmul_rn(x, y); }
__device__ __forceinline__ double product_of(double x, double y) { return __dmul_rn(x, y); }

// Sixteen bytes of a row as they are compared.
template <class Row>
struct Values {
  static constexpr int kCount = Chunk<Row>::kCount;
  Widened<Row> value[kCount];
};

// A row as it is compared: divided by its norm for the cosine.
template <class Row>
struct ComparedRow {
  using T = Widened<Row>;
  const Row* row;  // (depth,), 16-byte aligned
  T scale;
  bool is_short;  // a norm below 1e-12, so that the divided row is shorter than 1

  static __device__ __forceinline__ ComparedRow make(const Row* row, double norm, bool cosine) {
    if (!cosine) return {row, T(1), false};
    return {row, static_cast<T>(1 / larger(norm, kMinNorm)), static_cast<T>(norm) < T(kMinNorm)};
  }

  __device__ __forceinline__ Values<Row> values(int64_t chunk) const {
    const Chunk<Row> loaded = Chunk<Row>::load(row, chunk);
    Values<Row> result;
#pragma unroll
    for (int e = 0; e < Values<Row>::kCount; ++e) result.value[e] = product_of(widen(loaded.element[e]), scale);
    return result;
  }
};

// A lane's part of the squared distances of kRows rows from kOthers others, summed over squared differences by a quad.
// load_row(r, chunk) and load_other(o, chunk) give Values. The order of a sum depends on the depth alone.
template <class Row, int kRows, int kOthers, class LoadRow, class LoadOther>
__device__ __forceinline__ void sum_squares(int64_t chunks, const LoadRow& load_row, const LoadOther& load_other,
                                            Widened<Row> (&sums)[kRows][kOthers]) {
  using T = Widened<Row>;
  T squares[kRows][kOthers][2] = {};
#pragma unroll(kRows* kOthers == 1 ? 2 : 1)  // several sums keep lanes busy enough, and take registers
  for (int64_t chunk = quad_lane(); chunk < chunks; chunk += 4) {
    Values<Row> own[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) own[r] = load_row(r, chunk);
#pragma unroll
    for (int o = 0; o < kOthers; ++o) {
      const Values<Row> other = load_other(o, chunk);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int e = 0; e < Values<Row>::kCount; ++e) {
          const T difference = own[r].value[e] - other.value[e];
          squares[r][o][e % 2] += difference * difference;
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int o = 0; o < kOthers; ++o) sums[r][o] = squares[r][o][0] + squares[r][o][1];
  }
}

// Whether the root of a sum of squares is a distance: no square has left the range of T.
template <class T>
__device__ __forceinline__ bool has_root(T squared) {
  return squared > Limits<T>::kTiny / Limits<T>::kEpsilon && squared <= Limits<T>::kMax;
}

// How near two rows are, by a quad: the cosine or the negative Euclidean distance. Both come from summed squared
// differences, the cosine of vectors shorter than 1 from the product.
template <class Row>
__device__ double closeness(const ComparedRow<Row>& x, const ComparedRow<Row>& y, int64_t depth, bool cosine) {
  using T = Widened<Row>;
  const int64_t chunks = depth / Chunk<Row>::kCount;
  if (x.is_short || y.is_short) {
    T product = 0;
    for (int64_t chunk = quad_lane(); chunk < chunks; chunk += 4) {
      const Values<Row> own = x.values(chunk), other = y.values(chunk);
#pragma unroll
      for (int e = 0; e < Values<Row>::kCount; ++e) product += own.value[e] * other.value[e];
    }
    return quad_sum(product);
  }
  T sums[1][1];
  sum_squares<Row>(
      chunks, [&](int, int64_t chunk) { return x.values(chunk); }, [&](int, int64_t chunk) { return y.values(chunk); },
      sums);
  const T squared = quad_sum(sums[0][0]);
  if (cosine) return 1 - 0.5 * static_cast<double>(squared);
  return has_root(squared) ? -sqrt(static_cast<double>(squared)) : -scaled_distance(x.row, y.row, depth);
}

// The distance that is the result, from how near two rows are.
template <class T>
__device__ __forceinline__ T distance_of(double closeness, bool cosine) {
  return static_cast<T>(cosine ? 1 - closeness : -closeness);
}

}  // namespace deepclust::kmeans

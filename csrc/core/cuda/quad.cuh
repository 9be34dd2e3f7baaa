// A quad, four neighboring lanes, that works on one row: reductions, and rows read in 16-byte chunks that alternate
// between its lanes. Sums are taken in an order that depends on the depth alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"

namespace deepclust {

__device__ __forceinline__ int quad_lane() { return threadIdx.x % 4; }

__device__ __forceinline__ unsigned quad_mask() { return 0xfu << (threadIdx.x % 32 & ~3u); }

// Which lanes of the quad say yes, as four bits.
__device__ __forceinline__ unsigned quad_ballot(bool yes) {
  return __ballot_sync(quad_mask(), yes) >> (threadIdx.x % 32 & ~3u);
}

template <class T>
__device__ __forceinline__ T quad_sum(T value) {
  value += __shfl_xor_sync(quad_mask(), value, 1);
  return value + __shfl_xor_sync(quad_mask(), value, 2);
}

template <class T>
__device__ __forceinline__ T quad_max(T value) {
  value = larger(value, __shfl_xor_sync(quad_mask(), value, 1));
  return larger(value, __shfl_xor_sync(quad_mask(), value, 2));
}

template <class T>
__device__ __forceinline__ T quad_min(T value) {
  value = smaller(value, __shfl_xor_sync(quad_mask(), value, 1));
  return smaller(value, __shfl_xor_sync(quad_mask(), value, 2));
}

// Sixteen bytes of a row.
template <class Element>
struct Chunk {
  static constexpr int kCount = 16 / int(sizeof(Element));
  Element element[kCount];

  static __device__ __forceinline__ Chunk load(const Element* row /* 16-byte aligned */, int64_t chunk) {
    const uint4 bytes = reinterpret_cast<const uint4*>(row)[chunk];
    Chunk loaded;
    memcpy(&loaded, &bytes, sizeof(loaded));
    return loaded;
  }

  __device__ __forceinline__ void store(Element* row /* 16-byte aligned */, int64_t chunk) const {
    uint4 bytes;
    memcpy(&bytes, this, sizeof(bytes));
    reinterpret_cast<uint4*>(row)[chunk] = bytes;
  }
};

// A row, padded with zeros to four chunks or a multiple. Of half precision the values are the elements times `scale`.
template <class Element>
struct ScaledRow {
  using T = Widened<Element>;
  const Element* row;  // (depth,)
  T scale;

  // Rounded as a stored product is, never contracted into a multiply-add: equal rows must have distance 0.
  __device__ __forceinline__ T value(Element element) const {
    if constexpr (sizeof(Element) == 2) {
      return __fmul_rn(widen(element), scale);
    } else {
      return element;
    }
  }
};

// Squared distances of x from each of kCount rows, summed over squared differences by a quad; the same in all lanes.
template <int kCount, class Element, class T>
__device__ __forceinline__ void squared_distances(const ScaledRow<Element>& x,
                                                  const ScaledRow<Element> (&others)[kCount],
                                                  int64_t depth,  // a multiple of four chunks
                                                  T (&squared)[kCount]) {
  constexpr int kElements = Chunk<Element>::kCount;
  T sum[kCount][2] = {};
  for (int64_t chunk = quad_lane(); chunk < depth / kElements; chunk += 4) {
    const Chunk<Element> own = Chunk<Element>::load(x.row, chunk);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Chunk<Element> other = Chunk<Element>::load(others[i].row, chunk);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const T difference = x.value(own.element[e]) - others[i].value(other.element[e]);
        sum[i][e % 2] += difference * difference;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) squared[i] = quad_sum(sum[i][0] + sum[i][1]);
}

template <class T>
struct Norm {
  bool finite;
  double value;
};

// L2 norm of a row, by a quad. Where it is not to `scale`, sums that overflow T count as not finite.
template <class T, class Row>
__device__ Norm<T> norm_of(const Row* source /* (depth,) */, int64_t depth, bool scale) {
  T squares = 0;
  for (int64_t k = quad_lane(); k < depth; k += 4) squares += widen(source[k]) * widen(source[k]);
  squares = quad_sum(squares);
  if (!scale) return {squares <= Limits<T>::kMax, sqrt(static_cast<double>(squares))};
  // Squares that leave the comfortable range are summed again relative to the largest element.
  constexpr T kTiny = Limits<T>::kTiny / Limits<T>::kEpsilon;
  if (squares > kTiny && squares < 1 / kTiny) return {true, sqrt(static_cast<double>(squares))};
  double largest = 0;
  bool finite = true;
  for (int64_t k = quad_lane(); k < depth; k += 4) {
    const double size = fabs(static_cast<double>(widen(source[k])));
    finite = finite && size <= Limits<double>::kMax;
    largest = larger(size, largest);
  }
  finite = quad_ballot(finite) == 0xf;
  largest = quad_max(largest);
  double scaled = 0;
  for (int64_t k = quad_lane(); k < depth && finite && largest > 0; k += 4) {
    const double ratio = static_cast<double>(widen(source[k])) / largest;
    scaled += ratio * ratio;
  }
  return {finite, largest * sqrt(quad_sum(scaled))};
}

}  // namespace deepclust

// Numbers in kernels: limits as constants, comparisons, and conversions between storage and accumulation types.
#pragma once

#include <limits>
#include <type_traits>

#include "core/cuda/device.h"

namespace deepclust {

constexpr unsigned kWholeWarp = 0xffffffffu;

// std::numeric_limits has host functions; device code may use constants.
template <class T>
struct Limits {
  static constexpr T kMax = std::numeric_limits<T>::max();
  static constexpr T kTiny = std::numeric_limits<T>::min();  // the smallest normal number
  static constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
  static constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
};

template <class T>
__host__ __device__ __forceinline__ T larger(T x, T y) {
  return x > y ? x : y;
}

template <class T>
__host__ __device__ __forceinline__ T smaller(T x, T y) {
  return x < y ? x : y;
}

// To the accumulation type: float32, for float64 float64.
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class Element>
using Widened = decltype(widen(Element()));

template <class Element>
__device__ __forceinline__ Element narrow(Widened<Element> x) {
  if constexpr (std::is_same<Element, __half>::value) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same<Element, __nv_bfloat16>::value) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

}  // namespace deepclust

// Marks functions that kernels and host code share, and what all of them need.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DEEPCLUST_HOST_DEVICE __host__ __device__
#else
#define DEEPCLUST_HOST_DEVICE
#endif

// Inlined always, so that code compiled for several instruction sets leaves no copy of its own behind.
#define DEEPCLUST_SHARED_INLINE DEEPCLUST_HOST_DEVICE inline __attribute__((always_inline))

namespace deepclust {

// How many parts of `by` hold `value`.
DEEPCLUST_SHARED_INLINE constexpr int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// The least multiple of `to` that is not below `value`.
DEEPCLUST_SHARED_INLINE constexpr int64_t round_up(int64_t value, int64_t to) { return divide_up(value, to) * to; }

}  // namespace deepclust

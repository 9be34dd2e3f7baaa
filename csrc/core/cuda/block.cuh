// What a whole thread block does together: reductions in a fixed order, and finding out that it is the last one.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"

namespace deepclust {

// The largest value of a warp, in all its lanes.
template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value = larger(value, __shfl_xor_sync(kWholeWarp, value, offset));
  return value;
}

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

// The largest of `count` values, none below 0, the same in every thread.
template <int kWarps, class T>
__device__ T largest_of(const T* values, int count) {
  DEEPCLUST_SHARED(T, partial, [kWarps]);
  T largest = 0;
  for (int i = threadIdx.x; i < count; i += 32 * kWarps) largest = larger(largest, values[i]);
  largest = warp_max(largest);
  __syncthreads();  // all have read what an earlier call left
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) largest = larger(largest, partial[warp]);
  return largest;
}

// Sums over the block, in thread 0; the order depends on nothing.
template <int kWarps, int kSums>
__device__ void sum_over_block(double (&sums)[kSums]) {
  DEEPCLUST_SHARED(double, partial, [kWarps][kSums]);
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    sums[k] = warp_sum(sums[k]);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][k] = sums[k];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int k = 0; k < kSums; ++k) {
    for (int warp = 1; warp < kWarps; ++warp) sums[k] += partial[warp][k];
  }
}

// Whether this is the last of `expected` thread blocks to come here; if so, it sees what the others have written.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, unsigned expected) {
  DEEPCLUST_SHARED(bool, last, [1]);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last[0] = atomicAdd(ticket, 1u) + 1 == expected;
  }
  __syncthreads();
  if (last[0]) __threadfence();
  return last[0];
}

}  // namespace deepclust

// Marks functions that kernels and host code share.
#pragma once

#if defined(__CUDACC__)
#define DEEPCLUST_HOST_DEVICE __host__ __device__
#else
#define DEEPCLUST_HOST_DEVICE
#endif

// Inlined always, so that code compiled for several instruction sets leaves no copy of its own behind.
#define DEEPCLUST_SHARED_INLINE DEEPCLUST_HOST_DEVICE inline __attribute__((always_inline))

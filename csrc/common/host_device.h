// Marks functions that kernels and host code share.
#pragma once

#if defined(__CUDACC__)
#define DEEPCLUST_HOST_DEVICE __host__ __device__
#else
#define DEEPCLUST_HOST_DEVICE
#endif

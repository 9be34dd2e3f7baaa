// The four shuffles with every width, every distance and every type that kernels may pass; partial masks.
#include "cases.h"

namespace {

using conformance::expect_equal;
using conformance::kLanes;
using conformance::warp_results_of;

enum Variant { kIndex, kXor, kUp, kDown };
constexpr int kWidths[] = {1, 2, 4, 8, 16, 32};
constexpr int kWidthCount = 6;
constexpr int kDistances = 32;
constexpr unsigned kAll = 0xffffffffu;

template <class T>
__device__ T shuffle(int variant, unsigned mask, T value, int distance, int width) {
  if (variant == kIndex) return __shfl_sync(mask, value, distance, width);
  if (variant == kXor) return __shfl_xor_sync(mask, value, distance, width);
  if (variant == kUp) return __shfl_up_sync(mask, value, distance, width);
  return __shfl_down_sync(mask, value, distance, width);
}

template <class T>
__global__ void shuffle_kernel(T* results, int variant, const T* values) {
  const int lane = threadIdx.x;
  for (int w = 0, width = 1; w < kWidthCount; ++w, width *= 2) {
    for (int distance = 0; distance < kDistances; ++distance) {
      results[(w * kDistances + distance) * 32 + lane] = shuffle(variant, kAll, values[lane], distance, width);
    }
  }
}

// The lane a shuffle reads: lanes form groups of `width`, and one that would read outside gets its own value. Only
// __shfl_xor_sync may read groups before its own, and __shfl_sync wraps around.
int source_lane(int variant, int lane, int distance, int width) {
  const int first = lane / width * width, last = first + width - 1;
  if (variant == kIndex) return first + distance % width;
  if (variant == kXor) return (lane ^ distance) <= last ? lane ^ distance : lane;
  if (variant == kUp) return lane - distance >= first ? lane - distance : lane;
  return lane + distance <= last ? lane + distance : lane;
}

template <class T>
void check_shuffles() {
  std::vector<T> values;
  for (size_t lane = 0; lane < kLanes; ++lane) {  // every byte of the value matters
    const uint64_t bytes = 0x0101010101010101u * (lane + 1);
    values.push_back(sizeof(T) == 8 ? static_cast<T>(bytes >> 2) : static_cast<T>(bytes >> 40));
  }
  const conformance::DeviceBuffer<T> input(values, "values");
  for (int variant : {kIndex, kXor, kUp, kDown}) {
    std::vector<T> expected;
    for (int width : kWidths) {
      for (int distance = 0; distance < kDistances; ++distance) {
        for (int lane = 0; lane < 32; ++lane) expected.push_back(values[source_lane(variant, lane, distance, width)]);
      }
    }
    expect_equal(warp_results_of(kWidthCount * kDistances, shuffle_kernel<T>, variant, input.data()), expected);
  }
}

DEVICE_CASE(shuffle_int) { check_shuffles<int>(); }
DEVICE_CASE(shuffle_unsigned) { check_shuffles<unsigned>(); }
DEVICE_CASE(shuffle_float) { check_shuffles<float>(); }
DEVICE_CASE(shuffle_long_long) { check_shuffles<long long>(); }
DEVICE_CASE(shuffle_unsigned_long_long) { check_shuffles<unsigned long long>(); }
DEVICE_CASE(shuffle_double) { check_shuffles<double>(); }

__global__ void default_width_kernel(int* results) {
  const int lane = threadIdx.x, value = 100 + lane;
  results[lane] = __shfl_sync(kAll, value, 31 - lane);
  results[32 + lane] = __shfl_xor_sync(kAll, value, 16);
  results[64 + lane] = __shfl_up_sync(kAll, value, 3);
  results[96 + lane] = __shfl_down_sync(kAll, value, 3);
  results[128 + lane] = __shfl_sync(kAll, value, lane - 40, 8);  // the index counts modulo the width
}

DEVICE_CASE(shuffle_default_width_and_wrapped_index) {
  std::vector<int> expected(5 * kLanes);
  for (int lane = 0; lane < 32; ++lane) {
    expected[lane] = 100 + 31 - lane;
    expected[32 + lane] = 100 + (lane + 16) % 32;
    expected[64 + lane] = 100 + (lane < 3 ? lane : lane - 3);
    expected[96 + lane] = 100 + (lane > 28 ? lane : lane + 3);
    expected[128 + lane] = 100 + lane / 8 * 8 + (lane + 8 * 10 - 40) % 8;
  }
  expect_equal(warp_results_of(5, default_width_kernel), expected);
}

// Two halves of the warp exchange values in different branches, then odd and even lanes do.
__global__ void disjoint_masks_kernel(int* results) {
  const int lane = threadIdx.x;
  if (lane < 16) {
    results[lane] = __shfl_xor_sync(0x0000ffffu, lane, 5);
  } else {
    results[lane] = __shfl_sync(0xffff0000u, lane, 16 + (lane + 1) % 16);
  }
  if (lane % 2 == 0) {
    results[32 + lane] = __shfl_down_sync(0x55555555u, lane, 2, 8);
  } else {
    results[32 + lane] = __shfl_up_sync(0xaaaaaaaau, lane, 2, 8);
  }
}

DEVICE_CASE(shuffle_disjoint_masks) {
  std::vector<int> expected(2 * kLanes);
  for (int lane = 0; lane < 32; ++lane) {
    expected[lane] = lane < 16 ? lane ^ 5 : 16 + (lane + 1) % 16;
    const int source = lane % 2 == 0 ? lane + 2 : lane - 2;
    expected[32 + lane] = source >= 0 && source / 8 == lane / 8 ? source : lane;
  }
  expect_equal(warp_results_of(2, disjoint_masks_kernel), expected);
}

__global__ void sum_kernel(float* results) {
  const int lane = threadIdx.x;
  float up = lane, total = lane;
  for (int offset = 1; offset < 32; offset *= 2) {
    const float before = __shfl_up_sync(kAll, up, offset);
    if (lane >= offset) up += before;
    total += __shfl_xor_sync(kAll, total, offset);
  }
  results[lane] = up;
  results[32 + lane] = total;
}

DEVICE_CASE(shuffle_prefix_and_total) {
  std::vector<float> expected(2 * kLanes);
  for (int lane = 0; lane < 32; ++lane) {
    expected[lane] = static_cast<float>(lane * (lane + 1) / 2);
    expected[32 + lane] = 31 * 32 / 2;
  }
  expect_equal(warp_results_of(2, sum_kernel), expected);
}

}  // namespace

// Launches: how arguments arrive, what is refused; and the host functions of device.h.
#include "cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::require_success;
using conformance::results_of;
using deepclust::device::launch;

struct Parameters {
  int count;
  double scale;
  unsigned char tag;
};

__global__ void argument_kernel(double* results, size_t wide, float narrow, const float* pointer, bool flag,
                                Parameters parameters, unsigned char small) {
  results[0] = static_cast<double>(wide);
  results[1] = narrow;
  results[2] = pointer == nullptr;
  results[3] = flag;
  results[4] = parameters.count;
  results[5] = parameters.scale;
  results[6] = parameters.tag;
  results[7] = small;
}

DEVICE_CASE(launch_converts_arguments) {
  const Parameters parameters{-5, 0.125, 77};
  const std::vector<double> expected = {7, static_cast<double>(0.1f), 1, 1, -5, 0.125, 77, 250};
  expect_equal(results_of(8, 1, 1, 0, argument_kernel, 7, 0.1, nullptr, 3, parameters, 250), expected, 1);
}

__global__ void count_threads_kernel(unsigned* results) { atomicAdd(results, 1); }

DEVICE_CASE(launch_of_1024_threads) {
  const DeviceBuffer<unsigned> counter(std::vector<unsigned>{0}, "counter");
  require_success(launch(count_threads_kernel, dim3(3, 2), dim3(16, 8, 8), 0, nullptr, counter.data()));
  expect_equal(counter.to_host(), {6 * 1024}, 1);
}

__global__ void shared_flag_kernel(int* results) {
  DEEPCLUST_SHARED(int, flag);
  if (threadIdx.x == 0) flag = static_cast<int>(blockIdx.x);
  __syncthreads();
  results[blockIdx.x * blockDim.x + threadIdx.x] = flag;
}

DEVICE_CASE(launches_on_one_stream_are_in_order) {
  const DeviceBuffer<int> values(64, "values");
  require_success(launch(shared_flag_kernel, 2, 32, 0, nullptr, values.data()));
  require_success(deepclust::device::memset_async(values.data(), 0x01, 16 * sizeof(int), nullptr));
  std::vector<int> expected(64, 0);
  for (int i = 0; i < 16; ++i) expected[i] = 0x01010101;
  for (int i = 32; i < 64; ++i) expected[i] = 1;
  expect_equal(values.to_host(), expected);
}

DEVICE_CASE(memset_async_sets_bytes) {
  const DeviceBuffer<unsigned char> values(std::vector<unsigned char>(100, 9), "values");
  require_success(deepclust::device::memset_async(values.data() + 3, 0xab, 90, nullptr));
  require_success(deepclust::device::memset_async(values.data() + 5, 0, 0, nullptr));
  std::vector<unsigned char> expected(100, 9);
  for (int i = 3; i < 93; ++i) expected[i] = 0xab;
  expect_equal(values.to_host(), expected);
}

DEVICE_CASE(multiprocessors) {
  if (deepclust::device::multiprocessor_count() <= 0)
    throw std::runtime_error("multiprocessor_count() is not positive");
}

// A refused launch reports it at once, by its result or by an exception, and leaves the device usable.
void expect_refused(dim3 grid, dim3 block, size_t shared_bytes) {
  const DeviceBuffer<unsigned> counter(std::vector<unsigned>{0}, "counter");
  bool refused = false;
  try {
    refused = launch(count_threads_kernel, grid, block, shared_bytes, nullptr, counter.data()) != cudaSuccess;
  } catch (const std::runtime_error&) {
    refused = true;
  }
#ifndef DEEPCLUST_EMULATED
  cudaGetLastError();  // the runtime also keeps the error for the next caller
#endif
  if (!refused) throw std::runtime_error("the launch was accepted");
  require_success(launch(count_threads_kernel, 1, 5, 0, nullptr, counter.data()));
  expect_equal(counter.to_host(), {5}, 1);
}

DEVICE_CASE(launch_of_too_many_threads_is_refused) { expect_refused(1, 1025, 0); }
DEVICE_CASE(launch_of_too_many_threads_in_z_is_refused) { expect_refused(1, dim3(1, 1, 65), 0); }
DEVICE_CASE(launch_of_no_threads_is_refused) { expect_refused(1, 0, 0); }
DEVICE_CASE(launch_of_no_blocks_is_refused) { expect_refused(0, 32, 0); }
DEVICE_CASE(launch_of_too_many_blocks_in_y_is_refused) { expect_refused(dim3(1, 65536), 1, 0); }
DEVICE_CASE(launch_with_too_much_shared_memory_is_refused) { expect_refused(1, 32, 1024 * 1024); }

static_assert(alignof(float4) == 16 && alignof(double2) == 16 && alignof(int4) == 16 && alignof(uint4) == 16,
              "16-byte vectors");
static_assert(alignof(float2) == 8 && alignof(int2) == 8, "8-byte vectors");

__global__ void vector_kernel(float* results, const float* values, const double* wide, const int* integers) {
  const int lane = threadIdx.x;
  const float4 four = reinterpret_cast<const float4*>(values)[lane];
  const float2 two = __ldg(reinterpret_cast<const float2*>(values) + lane);
  const double2 doubles = reinterpret_cast<const double2*>(wide)[lane];
  const int4 ints = __ldg(reinterpret_cast<const int4*>(integers) + lane);
  const uint4 made = make_uint4(1, 2, 3, lane);
  reinterpret_cast<float4*>(results)[lane] = make_float4(four.w, four.z, four.y, four.x);
  reinterpret_cast<float2*>(results + 128)[lane] = make_float2(two.y, two.x);
  reinterpret_cast<float2*>(results + 192)[lane] =
      make_float2(static_cast<float>(doubles.y), static_cast<float>(ints.z + static_cast<int>(made.w)));
}

DEVICE_CASE(vector_types) {
  std::vector<float> values, expected(256);
  std::vector<double> wide;
  std::vector<int> integers;
  for (int i = 0; i < 128; ++i) {
    values.push_back(static_cast<float>(i) + 0.25f);
    integers.push_back(i * 3);
  }
  for (int i = 0; i < 64; ++i) wide.push_back(i * 2);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) expected[lane * 4 + i] = values[lane * 4 + 3 - i];
    for (int i = 0; i < 2; ++i) expected[128 + lane * 2 + i] = values[lane * 2 + 1 - i];
    expected[192 + lane * 2] = static_cast<float>((lane * 2 + 1) * 2);
    expected[192 + lane * 2 + 1] = static_cast<float>((lane * 4 + 2) * 3 + lane);
  }
  const DeviceBuffer<float> floats(values, "values");
  const DeviceBuffer<double> doubles(wide, "wide");
  const DeviceBuffer<int> ints(integers, "integers");
  expect_equal(results_of(256, 1, 32, 0, vector_kernel, floats.data(), doubles.data(), ints.data()), expected);
}

}  // namespace

// Asynchronous copies to shared memory: sizes from 0 to 16 bytes, groups; and the element map of ldmatrix.
#include "cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::results_of;
using deepclust::device::cp_async16;
using deepclust::device::cp_async_commit;
using deepclust::device::cp_async_wait;
using deepclust::device::shared_array;
using deepclust::device::shared_next;

constexpr int kRow = 16;
constexpr size_t kBytesShared = shared_next<unsigned char>(0, 17 * kRow);

__global__ void sizes_kernel(unsigned char* results, const unsigned char* source) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  unsigned char* rows = shared_array<unsigned char>(memory, 0, 17 * kRow);
  const int bytes = threadIdx.x;  // 0..16
  unsigned char* row = rows + bytes * kRow;
  for (int i = 0; i < kRow; ++i) row[i] = 0xaa;
  // A copy of no bytes must not touch its source, which lies behind the buffer here.
  cp_async16(row, source + (bytes == 0 ? 17 : bytes) * kRow, bytes);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  const int other = 16 - bytes;
  for (int i = 0; i < kRow; ++i) results[other * kRow + i] = rows[other * kRow + i];
}

DEVICE_CASE(cp_async_sizes) {
  std::vector<unsigned char> source, expected;
  for (int i = 0; i < 17 * kRow; ++i) source.push_back(static_cast<unsigned char>(i % 251 + 1));
  for (int bytes = 0; bytes <= 16; ++bytes) {
    for (int i = 0; i < kRow; ++i) expected.push_back(i < bytes ? source[bytes * kRow + i] : 0);
  }
  const DeviceBuffer<unsigned char> input(source, "source");
  expect_equal(results_of(17 * kRow, 1, 17, kBytesShared, sizes_kernel, input.data()), expected, kRow);
}

constexpr int kGroups = 4, kGroupThreads = 64;
constexpr size_t kIntsShared = shared_next<int4>(0, kGroups* kGroupThreads);

template <int kPending>
__device__ void read_group(int4* results, const int4* stages, int group) {
  cp_async_wait<kPending>();  // a thread waits for its own copies, the barrier for those of the others
  __syncthreads();
  const int thread = threadIdx.x;
  results[group * kGroupThreads + thread] = stages[group * kGroupThreads + kGroupThreads - 1 - thread];
}

__global__ void groups_kernel(int4* results, const int4* source) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  int4* stages = shared_array<int4>(memory, 0, kGroups * kGroupThreads);
  const int thread = threadIdx.x;
  for (int group = 0; group < kGroups; ++group) {
    const int place = group * kGroupThreads + thread;
    if (group != 2) cp_async16(&stages[place], &source[place], 16);
    cp_async_commit();  // group 2 is empty and counts all the same
  }
  read_group<3>(results, stages, 0);
  read_group<2>(results, stages, 1);
  stages[2 * kGroupThreads + thread] = make_int4(thread, 0, 0, -1);
  read_group<1>(results, stages, 2);
  read_group<0>(results, stages, 3);
}

DEVICE_CASE(cp_async_groups) {
  std::vector<int4> source;
  for (int i = 0; i < kGroups * kGroupThreads; ++i) source.push_back(make_int4(i, 2 * i, 3 * i, -i));
  const DeviceBuffer<int4> input(source, "source");
  std::vector<int> got, expected;
  for (const int4& quad : results_of(source.size(), 1, kGroupThreads, kIntsShared, groups_kernel, input.data())) {
    got.insert(got.end(), {quad.x, quad.y, quad.z, quad.w});
  }
  for (int group = 0; group < kGroups; ++group) {
    for (int thread = 0; thread < kGroupThreads; ++thread) {
      const int other = kGroupThreads - 1 - thread, i = group * kGroupThreads + other;
      const int4 quad = group == 2 ? make_int4(other, 0, 0, -1) : source[i];
      expected.insert(expected.end(), {quad.x, quad.y, quad.z, quad.w});
    }
  }
  expect_equal(got, expected, 4);
}

// Two stages that are filled while the other is summed, as tiled products do it.
__global__ void pipeline_kernel(int* results, const int4* source, int steps) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  int4* stages = shared_array<int4>(memory, 0, 2 * kGroupThreads);
  const int thread = threadIdx.x;
  int sum = 0;
  cp_async16(&stages[thread], &source[thread], 16);
  cp_async_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      cp_async16(&stages[(step + 1) % 2 * kGroupThreads + thread], &source[(step + 1) * kGroupThreads + thread], 16);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const int4 quad = stages[step % 2 * kGroupThreads + (thread + 1) % kGroupThreads];
    sum += quad.x + quad.y + quad.z + quad.w;
    __syncthreads();
  }
  results[thread] = sum;
}

DEVICE_CASE(cp_async_pipeline) {
  constexpr int kSteps = 5;
  std::vector<int4> source;
  for (int i = 0; i < kSteps * kGroupThreads; ++i) source.push_back(make_int4(i, i * i, 7, -3 * i));
  std::vector<int> expected(kGroupThreads, 0);
  for (int step = 0; step < kSteps; ++step) {
    for (int thread = 0; thread < kGroupThreads; ++thread) {
      const int4& quad = source[step * kGroupThreads + (thread + 1) % kGroupThreads];
      expected[thread] += quad.x + quad.y + quad.z + quad.w;
    }
  }
  const DeviceBuffer<int4> input(source, "source");
  expect_equal(results_of(kGroupThreads, 1, kGroupThreads, kIntsShared, pipeline_kernel, input.data(), kSteps),
               expected);
}

// 32 rows of 8 elements of 16 bits, 48 bytes apart. Row r of matrix m is the one whose address lane 8 m + r passes:
// here row (8 m + r) * 5 % 32. Lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of every matrix.
constexpr int kPitch = 24;
constexpr size_t kMatrixShared = shared_next<uint16_t>(0, 32 * kPitch);

__global__ void ldmatrix_kernel(uint32_t* results) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  uint16_t* rows = shared_array<uint16_t>(memory, 0, 32 * kPitch);
  const int lane = threadIdx.x;
  for (int column = 0; column < 8; ++column) rows[lane * kPitch + column] = static_cast<uint16_t>(lane * 8 + column);
  __syncwarp();
  uint32_t registers[4];
  deepclust::device::ldmatrix_x4(registers, rows + lane * 5 % 32 * kPitch);
  for (int matrix = 0; matrix < 4; ++matrix) results[matrix * 32 + lane] = registers[matrix];
}

DEVICE_CASE(ldmatrix_x4_map) {
  std::vector<uint32_t> expected;
  for (uint32_t matrix = 0; matrix < 4; ++matrix) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
      const uint32_t row = (matrix * 8 + lane / 4) * 5 % 32, first = row * 8 + lane % 4 * 2;
      expected.push_back(first | (first + 1) << 16);
    }
  }
  expect_equal(results_of(128, 1, 32, kMatrixShared, ldmatrix_kernel), expected);
}

}  // namespace

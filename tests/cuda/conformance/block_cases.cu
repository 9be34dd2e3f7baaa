// Indices, block barriers, shared memory, launches and the small host functions of device.h.
#include "cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::results_of;
using deepclust::device::launch;
using deepclust::device::shared_array;
using deepclust::device::shared_next;

__global__ void index_kernel(unsigned* results) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned place = block * blockDim.x * blockDim.y * blockDim.z + thread;
  results[place] =
      ((blockIdx.z * 10 + blockIdx.y) * 10 + blockIdx.x) * 1000 + (threadIdx.z * 10 + threadIdx.y) * 10 + threadIdx.x;
}

DEVICE_CASE(indices) {
  std::vector<unsigned> expected;
  for (unsigned block_z = 0; block_z < 2; ++block_z)
    for (unsigned block_y = 0; block_y < 3; ++block_y)
      for (unsigned block_x = 0; block_x < 4; ++block_x)
        for (unsigned z = 0; z < 3; ++z)
          for (unsigned y = 0; y < 2; ++y)
            for (unsigned x = 0; x < 7; ++x)
              expected.push_back(((block_z * 10 + block_y) * 10 + block_x) * 1000 + (z * 10 + y) * 10 + x);
  expect_equal(results_of(expected.size(), dim3(4, 3, 2), dim3(7, 2, 3), 0, index_kernel), expected, 42);
}

__global__ void lane_order_kernel(unsigned* results) {  // warps are cut from threads in x, then y, then z order
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  results[thread] = __shfl_sync(0xffffffffu, thread, 5);
}

DEVICE_CASE(lanes_of_a_3d_block) {
  std::vector<unsigned> expected;
  for (unsigned thread = 0; thread < 96; ++thread) expected.push_back(thread / 32 * 32 + 5);
  expect_equal(results_of(96, 1, dim3(6, 4, 4), 0, lane_order_kernel), expected);
}

// The block's last warp is not full. Bit p of a thread's number is what it votes in round p.
constexpr int kVoters = 80, kVoteRounds = 7;

__global__ void barrier_vote_kernel(int* results) {
  const int thread = threadIdx.x;
  for (int round = 0; round < kVoteRounds; ++round) {
    const int predicate = thread & (1 << round);
    int* to = results + round * 3 * kVoters + thread;
    to[0] = __syncthreads_count(predicate);
    to[kVoters] = __syncthreads_or(predicate) != 0;
    to[2 * kVoters] = __syncthreads_and(predicate || thread < 64) != 0;
  }
}

DEVICE_CASE(barriers_that_vote) {
  std::vector<int> expected;
  for (int round = 0; round < kVoteRounds; ++round) {
    int count = 0;
    bool all = true;
    for (int thread = 0; thread < kVoters; ++thread) {
      const bool predicate = (thread >> round) % 2 == 1;
      count += predicate;
      all = all && (predicate || thread < 64);
    }
    for (int result : {count, int(count > 0), int(all)}) expected.insert(expected.end(), kVoters, result);
  }
  expect_equal(results_of(expected.size(), 1, kVoters, 0, barrier_vote_kernel), expected, kVoters);
}

__global__ void exited_threads_kernel(int* results) {  // threads that returned no longer count at a barrier
  DEEPCLUST_SHARED(int, values, [64]);
  if (threadIdx.x >= 40) return;
  values[threadIdx.x] = static_cast<int>(threadIdx.x) * 3;
  __syncthreads();
  results[threadIdx.x] = values[39 - threadIdx.x];
  results[40 + threadIdx.x] = __syncthreads_count(1);
}

DEVICE_CASE(barrier_after_threads_exited) {
  std::vector<int> expected;
  for (int thread = 0; thread < 40; ++thread) expected.push_back((39 - thread) * 3);
  expected.insert(expected.end(), 40, 40);
  expect_equal(results_of(80, 1, 64, 0, exited_threads_kernel), expected, 40);
}

__global__ void static_shared_kernel(int* results) {
  DEEPCLUST_SHARED(int, matrix, [8][9]);
  DEEPCLUST_SHARED(double, row, [8]);
  DEEPCLUST_SHARED(int, total);
  const int x = threadIdx.x, y = threadIdx.y;
  matrix[y][x] = static_cast<int>(blockIdx.x) * 100 + y * 8 + x;
  if (y == 0) row[x] = x + 0.5;
  if (x == 0 && y == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, matrix[y][x]);
  const int transposed = matrix[x][y];
  __syncthreads();
  int* to = results + (blockIdx.x * 64 + y * 8 + x) * 3;
  to[0] = transposed;
  to[1] = static_cast<int>(row[7 - x] * 2);
  to[2] = total;
}

DEVICE_CASE(static_shared_memory) {
  std::vector<int> expected;
  for (int block = 0; block < 3; ++block) {
    for (int y = 0; y < 8; ++y) {
      for (int x = 0; x < 8; ++x) {
        for (int result : {block * 100 + x * 8 + y, (7 - x) * 2 + 1, block * 6400 + 63 * 64 / 2}) {
          expected.push_back(result);
        }
      }
    }
  }
  expect_equal(results_of(expected.size(), 3, dim3(8, 8), 0, static_shared_kernel), expected, 3);
}

// Three arrays of different types behind one another, the last one over the place of the first.
constexpr size_t kBytesAt = 0, kBytes = 37, kDoubles = 40, kInts = 5;
constexpr size_t kDoublesAt = shared_next<unsigned char>(kBytesAt, kBytes);
constexpr size_t kDynamicBytes = shared_next<double>(kDoublesAt, kDoubles);

__global__ void dynamic_shared_kernel(double* results) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  unsigned char* bytes = shared_array<unsigned char>(memory, kBytesAt, kBytes);
  double* doubles = shared_array<double>(memory, kDoublesAt, kDoubles);
  const int thread = threadIdx.x;
  if (thread < static_cast<int>(kBytes)) bytes[thread] = static_cast<unsigned char>(200 + thread);
  doubles[thread] = thread / 4.0;
  __syncthreads();
  results[thread] = doubles[kDoubles - 1 - thread] + bytes[thread % kBytes];
  __syncthreads();
  int* ints = shared_array<int>(memory, kBytesAt, kInts);
  if (thread < static_cast<int>(kInts)) ints[thread] = -thread;
  __syncthreads();
  results[kDoubles + thread] = ints[thread % kInts];
}

DEVICE_CASE(dynamic_shared_memory) {
  static_assert(kDoublesAt % 128 == 0 && kDynamicBytes % 128 == 0, "arrays begin at multiples of 128 bytes");
  std::vector<double> expected;
  for (int i = 0; i < 40; ++i) expected.push_back((39 - i) / 4.0 + (200 + i % 37) % 256);
  for (int i = 0; i < 40; ++i) expected.push_back(-(i % 5));
  expect_equal(results_of(80, 1, 40, kDynamicBytes, dynamic_shared_kernel), expected, 40);
}

constexpr size_t kLargeCount = 24 * 1024;  // 96 KB: more than a kernel may use without opting in
constexpr size_t kLargeBytes = shared_next<int>(0, kLargeCount);

__global__ void large_shared_kernel(int* results) {
  DEEPCLUST_DYNAMIC_SHARED(memory);
  int* values = shared_array<int>(memory, 0, kLargeCount);
  for (int i = threadIdx.x; i < static_cast<int>(kLargeCount); i += 128) values[i] = i;
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < static_cast<int>(kLargeCount) / 128; ++i) sum += values[i * 128 + 127 - threadIdx.x];
  results[threadIdx.x] = sum;
}

DEVICE_CASE(dynamic_shared_memory_above_48_kb) {
  std::vector<int> expected;
  const int rows = static_cast<int>(kLargeCount) / 128;
  for (int thread = 0; thread < 128; ++thread) expected.push_back(rows * (rows - 1) / 2 * 128 + rows * (127 - thread));
  expect_equal(results_of(128, 1, 128, kLargeBytes, large_shared_kernel), expected);
}

__global__ void two_steps_kernel(int* results, int steps) {
  DEEPCLUST_SHARED(int, tile, [64]);
  int sum = 0;
  for (int step = 0; step < steps; ++step) {
    tile[threadIdx.x] = static_cast<int>(threadIdx.x) + step * 1000;
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    deepclust::device::sync_forget(tile, 64);
  }
  results[threadIdx.x] = sum;
}

DEVICE_CASE(sync_forget_is_a_barrier) {
  std::vector<int> expected;
  for (int thread = 0; thread < 64; ++thread) expected.push_back(4 * (63 - thread) + (0 + 1 + 2 + 3) * 1000);
  expect_equal(results_of(64, 1, 64, 0, two_steps_kernel, 4), expected);
}

}  // namespace

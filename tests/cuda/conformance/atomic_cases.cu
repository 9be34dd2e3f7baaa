// Atomics: the value before (each lane on a word of its own), the value after when all threads of a grid compete, and
// fences.
#include <algorithm>

#include "cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::Random;
using conformance::require_success;
using deepclust::device::launch;

enum Operation { kAdd, kMax, kMin, kExchange, kCompareAndSwap, kOr, kAnd };

template <class T>
__device__ T integer_atomic(int operation, T* word, T value) {
  switch (operation) {
    case kAdd:
      return atomicAdd(word, value);
    case kMax:
      return atomicMax(word, value);
    case kMin:
      return atomicMin(word, value);
    case kExchange:
      return atomicExch(word, value);
    case kOr:
      return atomicOr(word, value);
    case kAnd:
      return atomicAnd(word, value);
    default:
      return atomicCAS(word, T(5), value);
  }
}

template <class T>
T integer_result(int operation, T word, T value) {
  switch (operation) {
    case kAdd:
      return static_cast<T>(static_cast<unsigned long long>(word) + static_cast<unsigned long long>(value));
    case kMax:
      return std::max(word, value);
    case kMin:
      return std::min(word, value);
    case kExchange:
      return value;
    case kOr:
      return word | value;
    case kAnd:
      return word & value;
    default:
      return word == 5 ? value : word;
  }
}

template <class T>
__global__ void own_word_kernel(T* before, int operation, T* words, const T* values) {
  const int lane = threadIdx.x;
  DEEPCLUST_SHARED(T, shared, [32]);
  shared[lane] = words[lane];
  before[lane] = integer_atomic(operation, &words[lane], values[lane]);
  before[32 + lane] = integer_atomic(operation, &shared[lane], values[lane]);
  before[64 + lane] = shared[lane];
}

template <class T>
void check_own_words() {
  for (int operation : {kAdd, kMax, kMin, kExchange, kCompareAndSwap, kOr, kAnd}) {
    Random random(operation);
    std::vector<T> words, values, after;
    for (size_t lane = 0; lane < 32; ++lane) {
      words.push_back(lane % 3 == 0 ? T(5) : static_cast<T>(random.bits()));
      values.push_back(static_cast<T>(random.bits()));
      after.push_back(integer_result(operation, words[lane], values[lane]));
    }
    std::vector<T> expected = words;
    expected.insert(expected.end(), words.begin(), words.end());
    expected.insert(expected.end(), after.begin(), after.end());
    const DeviceBuffer<T> device_words(words, "words"), device_values(values, "values");
    expect_equal(
        conformance::warp_results_of(3, own_word_kernel<T>, operation, device_words.data(), device_values.data()),
        expected);
    expect_equal(device_words.to_host(), after);
  }
}

DEVICE_CASE(atomics_int) { check_own_words<int>(); }
DEVICE_CASE(atomics_unsigned) { check_own_words<unsigned>(); }
DEVICE_CASE(atomics_unsigned_long_long) { check_own_words<unsigned long long>(); }

template <class T>
__global__ void add_kernel(T* totals, const T* values) {
  const int thread = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&totals[thread % 7], values[thread]);
}

template <class T>
void check_contended_add() {  // small integers: every order gives the same sum
  std::vector<T> values, expected(7, 100);
  for (int i = 0; i < 5 * 96; ++i) {
    values.push_back(static_cast<T>(i % 11));
    expected[i % 7] += static_cast<T>(i % 11);
  }
  const DeviceBuffer<T> input(values, "values"), totals(std::vector<T>(7, 100), "totals");
  require_success(launch(add_kernel<T>, 5, 96, 0, nullptr, totals.data(), input.data()));
  expect_equal(totals.to_host(), expected);
}

DEVICE_CASE(atomic_add_contended) {
  check_contended_add<int>();
  check_contended_add<unsigned>();
  check_contended_add<unsigned long long>();
  check_contended_add<float>();
  check_contended_add<double>();
}

__global__ void extremes_kernel(unsigned long long* extremes, const unsigned long long* keys) {
  const unsigned long long key = keys[blockIdx.x * blockDim.x + threadIdx.x];
  atomicMax(&extremes[0], key);
  atomicMin(&extremes[1], key);
}

DEVICE_CASE(atomic_max_and_min_contended) {
  Random random(3);
  std::vector<unsigned long long> keys;
  for (int i = 0; i < 4 * 64; ++i) keys.push_back(random.bits());
  const DeviceBuffer<unsigned long long> input(keys, "keys");
  const DeviceBuffer<unsigned long long> extremes(std::vector<unsigned long long>{0, ~0ull}, "extremes");
  require_success(launch(extremes_kernel, 4, 64, 0, nullptr, extremes.data(), input.data()));
  expect_equal(extremes.to_host(),
               {*std::max_element(keys.begin(), keys.end()), *std::min_element(keys.begin(), keys.end())});
}

// Every thread draws a ticket; tickets of a counter that wraps at 10 are 0..10, equally often.
__global__ void ticket_kernel(unsigned* counts, unsigned* counter) { atomicAdd(&counts[atomicInc(counter, 10)], 1); }

DEVICE_CASE(atomic_inc_wraps) {
  const DeviceBuffer<unsigned> counts(std::vector<unsigned>(11, 0), "counts"), counter({0}, "counter");
  require_success(launch(ticket_kernel, 3, 44, 0, nullptr, counts.data(), counter.data()));
  expect_equal(counts.to_host(), std::vector<unsigned>(11, 12));
  expect_equal(counter.to_host(), {0});
}

__global__ void inc_above_limit_kernel(unsigned* before, unsigned* counter) { before[0] = atomicInc(counter, 10); }

DEVICE_CASE(atomic_inc_above_the_limit) {
  const DeviceBuffer<unsigned> counter({25}, "counter");
  expect_equal(conformance::results_of(1, 1, 1, 0, inc_above_limit_kernel, counter.data()), {25});
  expect_equal(counter.to_host(), {0});
}

// A maximum of floats by compare-and-swap, as kernels build operations that the device lacks.
__global__ void float_max_kernel(unsigned* maximum, const float* values) {
  const float value = values[blockIdx.x * blockDim.x + threadIdx.x];
  unsigned seen = atomicOr(maximum, 0);  // an atomic read
  while (__uint_as_float(seen) < value) {
    const unsigned before = atomicCAS(maximum, seen, __float_as_uint(value));
    if (before == seen) break;
    seen = before;
  }
}

DEVICE_CASE(atomic_cas_loop) {
  Random random(5);
  std::vector<float> values;
  for (int i = 0; i < 64; ++i) values.push_back(static_cast<float>(random.uniform(-1, 1)));
  const DeviceBuffer<float> input(values, "values");
  const DeviceBuffer<unsigned> maximum({0xff800000u}, "maximum");  // minus infinity
  require_success(launch(float_max_kernel, 1, 64, 0, nullptr, maximum.data(), input.data()));
  float result;
  const unsigned bits = maximum.to_host()[0];
  std::memcpy(&result, &bits, sizeof result);
  expect_equal<float>({result}, {*std::max_element(values.begin(), values.end())});
}

// The last block to finish adds what all blocks wrote.
__global__ void last_block_kernel(int* total, int* partial, unsigned* ticket) {
  DEEPCLUST_SHARED(bool, last);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  int sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += partial[block];
  *total = sum;
}

DEVICE_CASE(last_block_sees_all_blocks) {
  const DeviceBuffer<int> partial(50, "partial");
  const DeviceBuffer<unsigned> ticket({0}, "ticket");
  for (int run = 0; run < 3; ++run) {  // the ticket counter resets itself
    expect_equal(conformance::results_of(1, 50, 64, 0, last_block_kernel, partial.data(), ticket.data()),
                 {50 * 51 / 2});
  }
}

__global__ void fence_kernel(int* results, int* flags) {  // fences compile and change nothing by themselves
  flags[threadIdx.x] = static_cast<int>(threadIdx.x);
  __threadfence_block();
  __threadfence();
  results[threadIdx.x] = flags[threadIdx.x];
}

DEVICE_CASE(fences) {
  std::vector<int> expected;
  for (int lane = 0; lane < 32; ++lane) expected.push_back(lane);
  const DeviceBuffer<int> flags(32, "flags");
  expect_equal(conformance::warp_results_of(1, fence_kernel, flags.data()), expected);
}

}  // namespace

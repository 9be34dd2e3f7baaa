// Votes, matches and reductions of a warp, with full and partial masks.
#include "cases.h"

namespace {

using conformance::expect_equal;
using conformance::kLanes;
using conformance::warp_results_of;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kMaskCount = 6;
struct Masks {
  unsigned values[kMaskCount];
};
constexpr Masks kMasks = {{0xffffffffu, 0x0000ffffu, 0xffff0000u, 0x55555555u, 0x80000001u, 0x00000010u}};

// Bit `lane` of predicates[p] is what the lane votes in round p.
__global__ void vote_kernel(unsigned* results, Masks masks, const unsigned* predicates, int rounds) {
  const int lane = threadIdx.x;
  for (int m = 0; m < kMaskCount; ++m) {
    const unsigned mask = masks.values[m];
    for (int p = 0; p < rounds; ++p) {
      unsigned* to = results + (m * rounds + p) * 3 * 32 + lane;
      to[0] = to[32] = to[64] = 7;  // what lanes outside the mask keep
      if (!(mask >> lane & 1)) continue;
      const int predicate = (predicates[p] >> lane & 1) * 6;  // any nonzero value is true
      to[0] = __ballot_sync(mask, predicate);
      to[32] = __any_sync(mask, predicate) != 0;
      to[64] = __all_sync(mask, predicate) != 0;
    }
  }
}

DEVICE_CASE(votes) {
  const std::vector<unsigned> predicates = {0, kAll, 0x00000001u, 0x80000000u, 0x12345678u, 0x55555555u, 0xfffffff7u};
  std::vector<unsigned> expected;
  for (unsigned mask : kMasks.values) {
    for (unsigned votes : predicates) {
      for (unsigned result : {votes & mask, unsigned((votes & mask) != 0), unsigned((votes & mask) == mask)}) {
        for (int lane = 0; lane < 32; ++lane) expected.push_back(mask >> lane & 1 ? result : 7);
      }
    }
  }
  const conformance::DeviceBuffer<unsigned> input(predicates, "predicates");
  const int rounds = static_cast<int>(predicates.size());
  expect_equal(warp_results_of(kMaskCount * 3 * rounds, vote_kernel, kMasks, input.data(), rounds), expected);
}

template <class T>
__global__ void match_kernel(unsigned* results, Masks masks, const T* values) {
  const int lane = threadIdx.x;
  for (int m = 0; m < kMaskCount; ++m) {
    const unsigned mask = masks.values[m];
    results[m * 32 + lane] = mask >> lane & 1 ? __match_any_sync(mask, values[lane]) : 7;
  }
}

template <class T>
void check_match(const std::vector<T>& values) {
  std::vector<unsigned> expected;
  for (unsigned mask : kMasks.values) {
    for (int lane = 0; lane < 32; ++lane) {
      unsigned same = 0;
      for (int other = 0; other < 32; ++other) same |= unsigned(values[other] == values[lane]) << other;
      expected.push_back(mask >> lane & 1 ? same & mask : 7);
    }
  }
  const conformance::DeviceBuffer<T> input(values, "values");
  expect_equal(warp_results_of(kMaskCount, match_kernel<T>, kMasks, input.data()), expected);
}

DEVICE_CASE(match_any) {
  std::vector<int> narrow;
  std::vector<unsigned long long> wide;
  for (int lane = 0; lane < 32; ++lane) {
    narrow.push_back(lane * lane % 7 - 3);
    wide.push_back((lane % 3 * 0x100000000ull) + lane % 2);  // differs in the high word, in the low word, in both
  }
  check_match(narrow);
  check_match(wide);
}

template <class T>
__global__ void reduce_kernel(T* results, Masks masks, const T* values) {
  const int lane = threadIdx.x;
  for (int m = 0; m < kMaskCount; ++m) {
    const unsigned mask = masks.values[m];
    T* to = results + m * 3 * 32 + lane;
    to[0] = to[32] = to[64] = 7;
    if (!(mask >> lane & 1)) continue;
    to[0] = __reduce_add_sync(mask, values[lane]);
    to[32] = __reduce_min_sync(mask, values[lane]);
    to[64] = __reduce_max_sync(mask, values[lane]);
  }
}

template <class T>
void check_reduce() {
  conformance::Random random(1);
  std::vector<T> values;
  for (size_t lane = 0; lane < kLanes; ++lane) values.push_back(static_cast<T>(random.bits()));  // sums wrap around
  std::vector<T> expected;
  for (unsigned mask : kMasks.values) {
    uint32_t sum = 0;
    bool first = true;
    T least = 0, greatest = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      const T value = values[lane];
      sum += static_cast<uint32_t>(value);
      least = first || value < least ? value : least;
      greatest = first || value > greatest ? value : greatest;
      first = false;
    }
    for (T result : {static_cast<T>(sum), least, greatest}) {
      for (int lane = 0; lane < 32; ++lane) expected.push_back(mask >> lane & 1 ? result : 7);
    }
  }
  const conformance::DeviceBuffer<T> input(values, "values");
  expect_equal(warp_results_of(kMaskCount * 3, reduce_kernel<T>, kMasks, input.data()), expected);
}

DEVICE_CASE(reduce_int) { check_reduce<int>(); }
DEVICE_CASE(reduce_unsigned) { check_reduce<unsigned>(); }

__global__ void reduce_bits_kernel(unsigned* results, Masks masks, const unsigned* values) {
  const int lane = threadIdx.x;
  for (int m = 0; m < kMaskCount; ++m) {
    const unsigned mask = masks.values[m];
    unsigned* to = results + m * 3 * 32 + lane;
    to[0] = to[32] = to[64] = 7;
    if (!(mask >> lane & 1)) continue;
    to[0] = __reduce_and_sync(mask, values[lane]);
    to[32] = __reduce_or_sync(mask, values[lane]);
    to[64] = __reduce_xor_sync(mask, values[lane]);
  }
}

DEVICE_CASE(reduce_bits) {
  std::vector<unsigned> values;
  for (int lane = 0; lane < 32; ++lane) values.push_back((1u << lane) | 0xf0000000u >> (lane % 4) | 0x00080000u);
  std::vector<unsigned> expected;
  for (unsigned mask : kMasks.values) {
    unsigned conjunction = kAll, disjunction = 0, parity = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      conjunction &= values[lane];
      disjunction |= values[lane];
      parity ^= values[lane];
    }
    for (unsigned result : {conjunction, disjunction, parity}) {
      for (int lane = 0; lane < 32; ++lane) expected.push_back(mask >> lane & 1 ? result : 7);
    }
  }
  const conformance::DeviceBuffer<unsigned> input(values, "values");
  expect_equal(warp_results_of(kMaskCount * 3, reduce_bits_kernel, kMasks, input.data()), expected);
}

// Lanes take turns in two disjoint groups that vote at the same time in different branches.
__global__ void disjoint_votes_kernel(unsigned* results) {
  const int lane = threadIdx.x;
  if (lane % 2 == 0) {
    results[lane] = __ballot_sync(0x55555555u, lane < 8);
    __syncwarp(0x55555555u);
    results[32 + lane] = __reduce_add_sync(0x55555555u, unsigned(lane));
  } else {
    results[lane] = __match_any_sync(0xaaaaaaaau, lane / 16);
    results[32 + lane] = __any_sync(0xaaaaaaaau, lane == 31) != 0;
    __syncwarp(0xaaaaaaaau);
  }
}

DEVICE_CASE(votes_of_disjoint_groups) {
  std::vector<unsigned> expected(2 * kLanes);
  for (int lane = 0; lane < 32; ++lane) {
    expected[lane] = lane % 2 == 0 ? 0x55u : lane < 16 ? 0x0000aaaau : 0xaaaa0000u;
    expected[32 + lane] = lane % 2 == 0 ? 30 * 16 / 2 : 1;
  }
  expect_equal(warp_results_of(2, disjoint_votes_kernel), expected);
}

}  // namespace

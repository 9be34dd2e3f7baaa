// Which of many candidates can be among the k best: a bound on the score, found by counting.
#pragma once

#include <cstdint>

#include "core/cuda/candidate.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"

namespace deepclust::neighbors {

// Scores as integers in the same order.
__device__ __forceinline__ unsigned ordered_bits(float score) {
  const unsigned bits = __float_as_uint(score);
  return bits >> 31 != 0 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ unsigned long long ordered_bits(double score) {
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(score));
  return bits >> 63 != 0 ? ~bits : bits | 1ull << 63;
}

__device__ __forceinline__ float score_of_bits(unsigned bits) {
  return __uint_as_float(bits >> 31 != 0 ? bits & ~(1u << 31) : ~bits);
}
__device__ __forceinline__ double score_of_bits(unsigned long long bits) {
  return __longlong_as_double(static_cast<long long>(bits >> 63 != 0 ? bits & ~(1ull << 63) : ~bits));
}

constexpr int kLastColumn = INT32_MAX;

// The candidates that stay: those with a score above `bound`, and of those with this very score the first columns.
template <class T>
struct Cut {
  T bound;
  int last_column;

  __device__ __forceinline__ bool keeps(const Candidate<T>& candidate) const {
    return candidate.score > bound || (candidate.score == bound && candidate.column <= last_column);
  }
};

// A score that at least `rank` of the candidates reach: the rank-th best, or less if exactly `rank` reach that too. All
// scores lie between `lowest`, which is the result if there are too few, and `highest`. `candidates.count(predicate)`
// is the same in all threads that take part.
template <class T, class Candidates>
__device__ T score_of_rank(const Candidates& candidates, int rank, T lowest, T highest) {
  auto low = ordered_bits(lowest), high = ordered_bits(highest);
  while (low < high) {
    const auto middle = high - (high - low) / 2;
    const T score = score_of_bits(middle);
    const int reach = candidates.count([&](const Candidate<T>& candidate) { return candidate.score >= score; });
    if (reach == rank) return score;
    if (reach > rank) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return score_of_bits(low);
}

// Keeps what can be among the k best, their scores being sure to `margin` (above 0). Where these are more than `limit`
// (at least k), nearly equal scores decide after all, ties to the lowest column, and exactly `limit` stay.
template <class T, class Candidates>
__device__ Cut<T> find_cut(const Candidates& candidates, int k, int limit, T lowest, T highest, T margin) {
  const T bound = score_of_rank(candidates, k, lowest, highest) - margin;
  const auto above = [&](T score) {
    return candidates.count([&](const Candidate<T>& candidate) { return candidate.score > score; });
  };
  if (above(bound) <= limit) return {bound, -1};
  const T last_score = score_of_rank(candidates, limit, lowest, highest);
  const int wanted = limit - above(last_score);  // of those with this very score
  int low = 0, high = kLastColumn;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    const int found = candidates.count(
        [&](const Candidate<T>& candidate) { return candidate.score == last_score && candidate.column <= middle; });
    if (found >= wanted) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return {last_score, low};
}

}  // namespace deepclust::neighbors

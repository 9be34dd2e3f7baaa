// The hardest pairs of a row, decided by distances summed over squared differences; ties go to the lowest index.
#pragma once

#include <cstdint>

#include "core/constants.h"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "mining/cuda/mining_rows.cuh"

namespace deepclust::mining {

// The hardest pairs of a row among the columns considered so far.
template <class T>
struct HardestPairs {
  T self_squared;
  int negative, positive;
  T negative_squared, positive_squared;                  // clamped, teacher to student
  T negative_teacher_squared, positive_teacher_squared;  // teacher to teacher

  // A row is its own first positive.
  static __device__ __forceinline__ HardestPairs start(int64_t row, T self_squared) {
    return {self_squared, -1, static_cast<int>(row), Limits<T>::kInfinity, self_squared, 0, 0};
  }

  __device__ __forceinline__ void add_negative(int column, T squared, T teacher_squared) {
    if (column < 0 || squared > negative_squared || (squared == negative_squared && column > negative)) return;
    negative = column;
    negative_squared = squared;
    negative_teacher_squared = teacher_squared;
  }

  __device__ __forceinline__ void add_positive(int column, T squared, T teacher_squared) {
    if (squared < positive_squared || (squared == positive_squared && column > positive)) return;
    positive = column;
    positive_squared = squared;
    positive_teacher_squared = teacher_squared;
  }

  // A column is a negative if DT_ij > D_ii, else a positive; the nearest negative and the farthest positive stay.
  __device__ __forceinline__ void add(int column, T squared, T teacher_squared) {
    squared = larger(squared, T(kMinSquaredDistance));
    if (teacher_squared > self_squared) {
      add_negative(column, squared, teacher_squared);
    } else {
      add_positive(column, squared, teacher_squared);
    }
  }

  // Adds what the lane `offset` away has found.
  __device__ __forceinline__ void merge(int offset) {
    const auto other = [&](auto value) { return __shfl_xor_sync(kWholeWarp, value, offset); };
    const int other_negative = other(negative), other_positive = other(positive);
    const T negative_squares[2] = {other(negative_squared), other(negative_teacher_squared)};
    const T positive_squares[2] = {other(positive_squared), other(positive_teacher_squared)};
    add_negative(other_negative, negative_squares[0], negative_squares[1]);
    add_positive(other_positive, positive_squares[0], positive_squares[1]);
  }
};

// Decides a row by its candidates, by a quad; false if a list was too short. Only candidates whose score is beyond the
// floor or ceiling of all splits can win. Of which list one is does not tell its class, which exact distances do.
template <class P>
__device__ bool decide_by_candidates(const MiningArguments<P>& in, int64_t i,
                                     HardestPairs<typename P::Accumulator>& pairs) {
  using T = typename P::Accumulator;
  using Row = typename MiningArguments<P>::Row;
  T floor = -Limits<T>::kMax, ceiling = Limits<T>::kMax;
  int longest = 0;
  for (int split = quad_lane(); split < in.splits; split += 4) {
    const SearchResult<T> result = in.results[split * in.count + i];
    floor = larger(floor, result.floor);
    ceiling = smaller(ceiling, result.ceiling);
    longest = larger(longest, larger(result.count[kNegative], result.count[kPositive]));
  }
  if (quad_max(longest) > kMaxCandidates) return false;
  floor = quad_max(floor);
  ceiling = quad_min(ceiling);
  const ScaledRow<Row> own = in.row(0, i);
  for (int split = 0; split < in.splits; ++split) {
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      const int count = in.results[split * in.count + i].count[kind];
      const Candidate<T>* list = in.list(i, split, kind);
      for (int first = 0; first < count; first += 4) {
        int column = -1;
        if (first + quad_lane() < count) {
          const Candidate<T> candidate = list[first + quad_lane()];
          const bool can_win = kind == kNegative ? candidate.score >= floor : candidate.score <= ceiling;
          if (can_win && candidate.column != i) column = static_cast<int>(candidate.column);
        }
        for (unsigned lanes = quad_ballot(column >= 0); lanes != 0; lanes &= lanes - 1) {
          const int j = __shfl_sync(quad_mask(), column, __ffs(lanes) - 1, 4);
          const ScaledRow<Row> others[2] = {in.row(1, j), in.row(0, j)};
          T squared[2];
          squared_distances(own, others, in.row_depth, squared);
          pairs.add(j, squared[0], squared[1]);
        }
      }
    }
  }
  return true;
}

// Decides rows by all columns, by a warp: `open` has the first lanes of the quads whose row `i` is to be decided.
template <class P>
__device__ void decide_by_all_columns(const MiningArguments<P>& in, int64_t i, unsigned open,
                                      HardestPairs<typename P::Accumulator>& pairs) {
  using T = typename P::Accumulator;
  using Row = typename MiningArguments<P>::Row;
  while (open != 0) {
    int owner[kOpenRows];
    ScaledRow<Row> own[kOpenRows];
    HardestPairs<T> found[kOpenRows];
#pragma unroll
    for (int r = 0; r < kOpenRows; ++r) {  // fewer rows than kOpenRows: the last one again
      owner[r] = open != 0 ? __ffs(open) - 1 : owner[r > 0 ? r - 1 : 0];
      open &= open - 1;
      const int64_t row = __shfl_sync(kWholeWarp, i, owner[r]);
      own[r] = in.row(0, row);
      found[r] = HardestPairs<T>::start(row, in.value(kSelfSquared, row));
    }
    for (int64_t j = threadIdx.x % 32 / 4; j < in.count; j += 8) {
      T squared[kOpenRows], teacher_squared[kOpenRows];
      squared_distances(in.row(1, j), own, in.row_depth, squared);
      squared_distances(in.row(0, j), own, in.row_depth, teacher_squared);
#pragma unroll
      for (int r = 0; r < kOpenRows; ++r) {
        found[r].add(static_cast<int>(j), squared[r], teacher_squared[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kOpenRows; ++r) {
      for (int offset = 4; offset < 32; offset *= 2) found[r].merge(offset);
      if (static_cast<int>(threadIdx.x % 32 / 4 * 4) == owner[r]) pairs = found[r];
    }
  }
}

}  // namespace deepclust::mining

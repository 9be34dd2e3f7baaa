// The row functor of mining: lists the columns that can still be a row's hardest pair.
#pragma once

#include <cstdint>

#include "core/constants.h"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"
#include "mining/cuda/mining_rows.cuh"

namespace deepclust::mining {

// Row functor. A score is x.y - |y|^2 / 2, larger for a nearer y. From its teacher score u a column of row i is a
// negative for certain if u < low, a positive for certain if u > high; student scores s order the columns.
template <class P, int kWarps>
struct PairSearch {
  using Gemm = TileGemm<P, kWarps, 2>;
  using T = typename P::Accumulator;
  static constexpr int kSlots = 2;  // rows of a quad

  struct RowState {
    T low, high;
    T floor, ceiling;  // scores of negatives and positives that still matter
    T margin;          // twice the rounding of a student score
    T scale;
    int count[2];
  };

  const MiningArguments<P>& in;
  int64_t first_row;
  RowState state[kSlots];

  __device__ __forceinline__ PairSearch(const MiningArguments<P>& arguments, int64_t first, T teacher_norm_max,
                                        T student_norm_max)
      : in(arguments), first_row(first) {
    const T rounding = (in.depth + 32) * Limits<T>::kEpsilon + P::kSplitError;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      RowState& row = state[slot];
      row.count[kNegative] = row.count[kPositive] = 0;
      const int64_t i = row_index(slot);
      if (i >= in.end_row) {  // nothing is ever listed
        const T infinity = Limits<T>::kInfinity;
        row = {infinity, -infinity, infinity, -infinity, 0, 0, {0, 0}};
        continue;
      }
      const T norm_squared = 2 * in.value(kTeacherBias, i), self_squared = in.value(kSelfSquared, i);
      const T norm = sqrt(norm_squared), reach = norm + student_norm_max;
      const T threshold = (norm_squared - self_squared) / 2;  // also the student score of i itself, its first positive
      // Rounding of the products, of the bias, and of the exact distances that decide in the end.
      const T class_margin = rounding * (norm * teacher_norm_max +
                                         (teacher_norm_max * teacher_norm_max + norm_squared + self_squared) / 4) +
                             T(kMinSquaredDistance);
      row.margin =
          2 * (rounding * (norm * student_norm_max + (student_norm_max * student_norm_max + reach * reach) / 4) +
               T(kMinSquaredDistance));
      row.low = threshold - class_margin;
      row.high = threshold + class_margin;
      row.floor = -Limits<T>::kMax;
      row.ceiling = threshold + row.margin;
      row.scale = MiningArguments<P>::kScaled ? in.value(kTeacherScale, i) : T(1);
    }
  }

  __device__ __forceinline__ int64_t row_index(int slot) const { return first_row + Gemm::row_of(slot); }

  __device__ __forceinline__ void operator()(int64_t first_column, typename Gemm::Products& scores) {
    to_scores(first_column, scores);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const RowState& row = state[slot];
      T nearest = -Limits<T>::kInfinity, farthest = Limits<T>::kInfinity;
#pragma unroll
      for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
        const T u = score(scores, 0, slot, c), s = score(scores, 1, slot, c);
        if (u < row.high) nearest = larger(nearest, s);
        if (u > row.low) farthest = smaller(farthest, s);
      }
      if (__any_sync(kWholeWarp, nearest >= row.floor || farthest <= row.ceiling)) {
        list_columns(slot, first_column, scores);
      }
    }
  }

  __device__ __forceinline__ void write_results(int split) const {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int64_t i = row_index(slot);
      const RowState& row = state[slot];
      if (quad_lane() == 0 && i < in.end_row) {
        in.results[split * in.count + i] = {row.floor, row.ceiling, {row.count[kNegative], row.count[kPositive]}};
      }
    }
  }

 private:
  static __device__ __forceinline__ T& score(typename Gemm::Products& scores, int set, int slot, int c) {
    return scores[set][c / 2][slot * 2 + c % 2];
  }

  // Absent columns get minus infinity twice: negatives that are never the nearest.
  __device__ __forceinline__ void to_scores(int64_t first_column, typename Gemm::Products& products) const {
#pragma unroll
    for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
      const int64_t j = first_column + Gemm::column_of(c / 2, c % 2);
#pragma unroll
      for (int set = 0; set < 2; ++set) {
        const T bias = j < in.count ? in.values[(kTeacherBias + set) * in.count + j] : Limits<T>::kInfinity;
        T scale = 1;
        if constexpr (MiningArguments<P>::kScaled) {
          scale = j < in.count ? in.values[(kTeacherScale + set) * in.count + j] : T(0);
        }
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          T& product = score(products, set, slot, c);
          product = product * (state[slot].scale * scale) - bias;
        }
      }
    }
  }

  // Raises floor and ceiling of the slot's rows by the columns that are certain, and lists what can still win.
  __device__ __forceinline__ void list_columns(int slot, int64_t first_column, typename Gemm::Products& scores) {
    RowState& row = state[slot];
    T nearest = -Limits<T>::kInfinity, farthest = Limits<T>::kInfinity;
#pragma unroll
    for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
      const T u = score(scores, 0, slot, c), s = score(scores, 1, slot, c);
      if (u < row.low) nearest = larger(nearest, s);
      if (u > row.high) farthest = smaller(farthest, s);
    }
    row.floor = larger(row.floor, quad_max(nearest) - row.margin);
    row.ceiling = smaller(row.ceiling, quad_min(farthest) + row.margin);
    unsigned hits[2] = {0, 0};
#pragma unroll
    for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
      const T u = score(scores, 0, slot, c), s = score(scores, 1, slot, c);
      if (u < row.high && s >= row.floor) hits[kNegative] |= 1u << c;
      if (u > row.low && s <= row.ceiling) hits[kPositive] |= 1u << c;
    }
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      for (unsigned left = hits[kind]; __any_sync(kWholeWarp, left != 0); left &= left - 1) {
        const int hit = __ffs(left) - 1;
        T s = 0;
        int column = 0;
#pragma unroll
        for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
          if (c != hit) continue;
          s = score(scores, 1, slot, c);
          column = static_cast<int>(first_column) + Gemm::column_of(c / 2, c % 2);
        }
        append(slot, kind, hit >= 0, {s, column});
      }
    }
  }

  // Adds the candidates of a quad to its row's list, in the order of the lanes.
  __device__ __forceinline__ void append(int slot, int kind, bool present, Candidate<T> candidate) {
    RowState& row = state[slot];
    int& count = row.count[kind];
    const unsigned lanes = quad_ballot(present);
    if (lanes == 0 || count > kMaxCandidates) return;
    Candidate<T>* list = in.list(row_index(slot), blockIdx.y, kind);
    if (count + __popc(lanes) > kMaxCandidates) count = drop_ruled_out(list, count, kind, row.floor, row.ceiling);
    if (count + __popc(lanes) > kMaxCandidates) {
      count = kMaxCandidates + 1;
      return;
    }
    if (present) list[count + __popc(lanes & ((1u << quad_lane()) - 1))] = candidate;
    count += __popc(lanes);
  }

  static __device__ int drop_ruled_out(Candidate<T>* list, int count, int kind, T floor, T ceiling) {
    int kept = 0;
    for (int first = 0; first < count; first += 4) {
      __syncwarp(quad_mask());  // what other lanes of the quad have written
      Candidate<T> candidate{};
      bool keep = false;
      if (first + quad_lane() < count) {
        candidate = list[first + quad_lane()];
        keep = kind == kNegative ? candidate.score >= floor : candidate.score <= ceiling;
      }
      const unsigned lanes = quad_ballot(keep);
      __syncwarp(quad_mask());  // all have read before one overwrites
      if (keep) list[kept + __popc(lanes & ((1u << quad_lane()) - 1))] = candidate;
      kept += __popc(lanes);
    }
    __syncwarp(quad_mask());
    return kept;
  }
};

}  // namespace deepclust::mining

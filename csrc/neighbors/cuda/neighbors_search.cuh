// The row functor of nearest_neighbors: lists the rows of the bank that can still be among a query's k nearest.
#pragma once

#include <cstdint>

#include "core/cuda/block.cuh"
#include "core/cuda/candidate.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"
#include "neighbors/cuda/neighbors_rows.cuh"
#include "neighbors/cuda/neighbors_selection.cuh"

namespace deepclust::neighbors {

// A list as a warp counts it.
template <class T>
struct WarpCandidates {
  const Candidate<T>* list;
  int size;

  template <class Predicate>
  __device__ __forceinline__ int count(Predicate predicate) const {
    int found = 0;
    for (int i = threadIdx.x % 32; i < size; i += 32) found += predicate(list[i]) ? 1 : 0;
    return warp_sum(found);
  }
};

// Row functor. A score is the product of the prepared rows over the norm of the bank's, so it orders the bank as the
// cosine does. A list keeps everything above a threshold that rises with the k-th best score of the list.
template <class P, int kWarps>
struct NeighborSearch {
  using Gemm = TileGemm<P, kWarps, 1, 2>;
  using T = typename P::Accumulator;
  static constexpr int kSlots = 2;                            // rows of a quad
  static constexpr int kOwnColumns = 2 * Gemm::kColumnTiles;  // that a lane has of a tile

  struct RowState {
    T norm;
    T threshold;
    int count;
    int exclude;
  };

  const NeighborsArguments<P>& in;
  int64_t first_row;
  RowState state[kSlots];

  __device__ __forceinline__ NeighborSearch(const NeighborsArguments<P>& arguments, int64_t first)
      : in(arguments), first_row(first) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int64_t i = row_index(slot);
      state[slot] = {0, Limits<T>::kInfinity, 0, -1};  // nothing is ever listed
      if (i >= in.count[kQuery]) continue;
      RowState& row = state[slot];
      row.norm = in.query_norms[i];
      if (row.norm >= 0) row.threshold = -Limits<T>::kInfinity;
      const int64_t exclude = in.exclude == nullptr ? -1 : in.exclude[i];
      if (exclude >= 0 && exclude < in.count[kBank]) row.exclude = static_cast<int>(exclude);
    }
  }

  __device__ __forceinline__ int64_t row_index(int slot) const { return first_row + Gemm::row_of(slot); }

  __device__ __forceinline__ void operator()(int64_t first_column, typename Gemm::Products& scores) {
    to_scores(first_column, scores);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      bool any = false;
#pragma unroll
      for (int c = 0; c < kOwnColumns; ++c) any |= score(scores, slot, c) > state[slot].threshold;
      if (__any_sync(kWholeWarp, any)) list_columns(slot, static_cast<int>(first_column), scores);
    }
  }

  __device__ __forceinline__ void write_counts(int split) const {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int64_t i = row_index(slot);
      if (quad_lane() == 0 && i < in.count[kQuery]) in.counts[i * in.splits + split] = state[slot].count;
    }
  }

 private:
  static __device__ __forceinline__ T& score(typename Gemm::Products& scores, int slot, int c) {
    return scores[0][c / 2][slot * 2 + c % 2];
  }

  // Columns that are absent or not candidates become NaN, which is above no threshold.
  __device__ __forceinline__ void to_scores(int64_t first_column, typename Gemm::Products& products) const {
    const T* scales = in.bank_scales + first_column;
    const int present = static_cast<int>(smaller<int64_t>(in.count[kBank] - first_column, Gemm::kColumns));
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c) {
      const int column = Gemm::column_of(c / 2, c % 2);
      const T scale = column < present ? scales[column] : Limits<T>::kNan;
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) score(products, slot, c) *= scale;
    }
  }

  // Which of the lane's columns belong on the list of the slot's row, as bits.
  __device__ __forceinline__ unsigned find_hits(int slot, int first_column, typename Gemm::Products& scores) const {
    const RowState& row = state[slot];
    unsigned hits = 0;
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c) {
      const bool excluded = first_column + Gemm::column_of(c / 2, c % 2) == row.exclude;
      if (score(scores, slot, c) > row.threshold && !excluded) hits |= 1u << c;
    }
    return hits;
  }

  __device__ __forceinline__ void list_columns(int slot, int first_column, typename Gemm::Products& scores) {
    RowState& row = state[slot];
    unsigned hits = find_hits(slot, first_column, scores);
    const bool is_full = row.count + quad_sum(__popc(hits)) > in.capacity;
    unsigned full = __ballot_sync(kWholeWarp, is_full && quad_lane() == 0);
    if (full != 0) {
      for (; full != 0; full &= full - 1) shorten_list(slot, __ffs(full) - 1);
      hits = find_hits(slot, first_column, scores);
    }
    const int own = __popc(hits);
    int before = 0, all = 0;  // hits of the lanes before, and of the quad
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      const int others = __shfl_sync(quad_mask(), own, lane, 4);
      if (lane < quad_lane()) before += others;
      all += others;
    }
    if (all == 0) return;
    Candidate<T>* next = list_of(row_index(slot)) + row.count + before;
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c) {
      if ((hits >> c & 1) != 0) *next++ = {score(scores, slot, c), first_column + Gemm::column_of(c / 2, c % 2)};
    }
    row.count += all;
  }

  __device__ __forceinline__ Candidate<T>* list_of(int64_t row) const {
    return in.lists + (row * in.splits + blockIdx.y) * in.capacity;
  }

  // Makes room for a whole tile in the list of one quad's row, by the warp; `owner` is the quad's first lane. The whole
  // block waits for each other between tiles, so all lanes see what was listed before this one.
  __device__ void shorten_list(int slot, int owner) {
    RowState& row = state[slot];
    const auto of_owner = [&](auto value) { return __shfl_sync(kWholeWarp, value, owner); };
    Candidate<T>* list = list_of(of_owner(first_row + Gemm::row_of(slot)));
    const int count = of_owner(row.count);
    const T norm = of_owner(row.norm), threshold = of_owner(row.threshold);
    const Cut<T> cut = find_cut(WarpCandidates<T>{list, count}, in.neighbors, in.capacity - Gemm::kColumns, threshold,
                                in.highest_score(norm), in.margin(norm));
    int kept = 0;
    for (int first = 0; first < count; first += 32) {
      const int i = first + static_cast<int>(threadIdx.x % 32);
      Candidate<T> candidate{};
      bool keep = false;
      if (i < count) {
        candidate = list[i];
        keep = cut.keeps(candidate);
      }
      const unsigned lanes = __ballot_sync(kWholeWarp, keep);
      __syncwarp();  // all have read before one overwrites
      if (keep) list[kept + __popc(lanes & ((1u << threadIdx.x % 32) - 1))] = candidate;
      kept += __popc(lanes);
    }
    if (static_cast<int>(threadIdx.x % 32 / 4 * 4) == owner) {
      row.count = kept;
      // Columns to come are higher, so those that only equal the bound come after what the list keeps.
      row.threshold = larger(threshold, cut.bound);
    }
  }
};

}  // namespace deepclust::neighbors

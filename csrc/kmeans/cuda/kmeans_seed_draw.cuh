// First launch of a center: integers of the costs, and its candidates, drawn by them.
#pragma once

#include <cstdint>

#include "kmeans/cuda/kmeans_seed_rows.cuh"

namespace deepclust::kmeans {

constexpr int kRun = 8;  // values of a lane in a search

// Where a running sum crosses, and the sum before that.
struct Crossing {
  int64_t place, before;
};

// The first place in [first, last) whose running sum, begun with `before`, exceeds `target`; `last` if none does. By a
// warp, in all its lanes. No value is below 0.
__device__ __forceinline__ Crossing find_crossing(const int64_t* values, int64_t first, int64_t last, int64_t before,
                                                  int64_t target) {
  const int lane = threadIdx.x % 32;
  for (; first < last; first += 32 * kRun) {
    const int64_t begin = first + lane * kRun;
    int64_t own[kRun], sum = 0;
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      own[r] = begin + r < last ? values[begin + r] : 0;
      sum += own[r];
    }
    int64_t through = before + sum;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int64_t others = __shfl_up_sync(kWholeWarp, through - before, offset);
      if (lane >= offset) through += others;
    }
    const unsigned beyond = __ballot_sync(kWholeWarp, through > target);
    if (beyond == 0) {
      before = __shfl_sync(kWholeWarp, through, 31);
      continue;
    }
    Crossing found{begin, through - sum};
    bool crossed = false;
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      crossed = crossed || found.before + own[r] > target;
      if (crossed) continue;
      found.before += own[r];
      ++found.place;
    }
    const int owner = __ffs(static_cast<int>(beyond)) - 1;
    return {__shfl_sync(kWholeWarp, found.place, owner), __shfl_sync(kWholeWarp, found.before, owner)};
  }
  return {last, before};
}

// Sum over the block, in all threads.
__device__ __forceinline__ int64_t sum_in_all(int64_t value) {
  DEEPCLUST_SHARED(int64_t, partial, [kWarps]);
  value = warp_sum(value);
  __syncthreads();  // all have read what an earlier call left
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  int64_t sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += partial[warp];
  return sum;
}

// Lays the rows of `count` candidates, as they are compared, side by side, a group at a time. By one block.
template <class T>
__device__ void gather_candidates(const KmeansSeedArguments<T>& in, int64_t count, int group /* a power of 2 */) {
  const int64_t chunks = in.row_depth / kChunk<T>, mask = group - 1;
  for (int64_t c = threadIdx.x / 32; c < ((count + mask) & ~mask); c += kWarps) {
    const ComparedRow<T> row = in.row(in.candidates[smaller(c, count - 1)]);
    T* const target = in.candidate_rows + (c & ~mask) * in.row_depth;
    for (int64_t chunk = threadIdx.x % 32; chunk < chunks; chunk += 32) {
      const Values<T> values = in.cosine ? row.values(chunk) : loaded(row.row, chunk);
      Chunk<T> elements;
#pragma unroll
      for (int e = 0; e < kChunk<T>; ++e) elements.element[e] = values.value[e];
      elements.store(target, chunk * group + (c & mask));
    }
  }
}

// Takes over the distances of the chosen candidate and draws the `count` candidates of center `step`, the first one by
// weight.
template <class T>
__global__ void __launch_bounds__(kThreads)
    draw_candidates_kernel(const KmeansSeedArguments<T> in, int64_t step, int64_t count, int group) {
  if (in.state->not_finite != 0) return;
  const double scale = in.scale();
  const T* chosen = in.distances + in.state->best * in.count;
  const int64_t parts = gridDim.x, begin = blockIdx.x * in.part_rows, end = smaller(begin + in.part_rows, in.count);
  // Integers of the costs of the block's part, by the distances that the last center left, and their sum.
  int64_t sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    double share;
    if (step == 0) {
      share = in.weights == nullptr ? 1 : in.weights[i];
    } else {
      const T distance = chosen[i];
      in.least[i] = distance;
      share = in.cost(distance, i);
    }
    const int64_t integer = integer_of(scale * share);
    in.integers[i] = integer;
    sum += integer;
  }
  sum = sum_in_all(sum);
  if (threadIdx.x == 0) in.part_sums[blockIdx.x] = sum;
  if (!is_last_block(&in.state->ticket, gridDim.x)) return;

  // The last block draws: the part in which the running sum crosses a share of the total, then the row.
  int64_t total = 0;
  for (int64_t part = threadIdx.x; part < parts; part += kThreads) total += in.part_sums[part];
  total = sum_in_all(total);
  for (int64_t c = threadIdx.x / 32; c < count; c += kWarps) {
    const double uniform = in.uniform[step * in.num_candidates + c];
    const int64_t target = static_cast<int64_t>(uniform * static_cast<double>(total));
    const Crossing part = find_crossing(in.part_sums, 0, parts, 0, target);
    const int64_t from = part.place * in.part_rows, to = smaller(from + in.part_rows, in.count);
    const int64_t place = find_crossing(in.integers, from, to, part.before, target).place;
    // Where nothing exceeds the target the search has ended behind the last row.
    if (threadIdx.x % 32 == 0) in.candidates[c] = smaller(place, in.count - 1);
  }
  if (threadIdx.x == 0) in.state->ticket = 0;
  __syncthreads();
  gather_candidates(in, count, group);
}

}  // namespace deepclust::kmeans

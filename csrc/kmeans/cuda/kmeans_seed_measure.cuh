// Second launch of a center: distances from its candidates, and the one that leaves the least cost.
#pragma once

#include <cstdint>

#include "kmeans/cuda/kmeans_seed_rows.cuh"

namespace deepclust::kmeans {

// The largest cost of rows: without weights that of the largest distance, which saves most arithmetic in float64.
template <class T>
struct LargestCost {
  T distance = 0;
  double cost = 0;

  __device__ __forceinline__ void add(const KmeansSeedArguments<T>& in, T other, int64_t i) {
    if (in.weights == nullptr) {
      distance = larger(other, distance);
    } else {
      cost = larger(in.cost(other, i), cost);
    }
  }

  __device__ __forceinline__ double value(const KmeansSeedArguments<T>& in) const {
    return in.weights == nullptr ? in.cost(distance, 0) : cost;
  }
};

// The candidate that leaves the least cost; ties go to the first.
struct BestCandidate {
  int64_t sum = INT64_MAX, candidate = 0;
  double largest = 0;

  __device__ __forceinline__ void add(const BestCandidate& other) {
    if (other.sum < sum || (other.sum == sum && other.candidate < candidate)) *this = other;
  }
};

// Chooses from what all blocks have left, by one block.
template <class T>
__device__ void choose_candidate(const KmeansSeedArguments<T>& in, int64_t step, int64_t count) {
  DEEPCLUST_SHARED(int64_t, sums, [kWarps]);
  DEEPCLUST_SHARED(int64_t, places, [kWarps]);
  DEEPCLUST_SHARED(double, largest, [kWarps]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = static_cast<int>(gridDim.x);
  // Each warp adds up its candidates over the blocks and keeps its best one; the first thread compares these.
  BestCandidate best;
  for (int64_t c = warp; c < count; c += kWarps) {
    BestCandidate found{0, c, 0};
#pragma unroll 4
    for (int block = lane; block < blocks; block += 32) {
      found.sum += in.block_sums[c * blocks + block];
      found.largest = larger(in.block_largest[c * blocks + block], found.largest);
    }
    found.sum = warp_sum(found.sum);
    found.largest = warp_max(found.largest);
    best.add(found);
  }
  if (lane == 0) {
    sums[warp] = best.sum;
    places[warp] = best.candidate;
    largest[warp] = best.largest;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int other = 1; other < kWarps && other < count; ++other) best.add({sums[other], places[other], largest[other]});
  in.state->best = best.candidate;
  in.state->largest = static_cast<unsigned long long>(__double_as_longlong(best.largest));
  in.state->ticket = 0;
  in.places[step] = in.candidates[best.candidate];
}

// Distances from `count` candidates, in groups of kGroup; the last block chooses one of them as center `step`.
template <class T, int kGroup, bool kCosine>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    measure_candidates_kernel(const KmeansSeedArguments<T> in, int64_t step, int64_t count) {
  constexpr int kOwn = kGroup / 4;  // candidates of a lane, in the end
  DEEPCLUST_SHARED(int64_t, sums, [kWarps][kGroup]);
  DEEPCLUST_SHARED(double, largest, [kWarps][kGroup]);
  if (in.state->not_finite != 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) in.places[step] = -1;
    return;
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool first_step = step == 0;
  const double scale = first_step ? 0 : in.scale();  // at first it is for weights; and one candidate needs no sum
  for (int64_t first = 0; first < count; first += kGroup) {
    const auto candidate = [&](int c) { return in.row(in.candidates[smaller(first + c, count - 1)]); };
    const T* others = in.candidate_rows + first * in.row_depth;  // (chunks, kGroup, kChunk)
    bool is_short[kOwn];
    int64_t own_sums[kOwn] = {};
    LargestCost<T> own_largest[kOwn];
#pragma unroll
    for (int k = 0; k < kOwn; ++k) is_short[k] = kCosine && candidate(4 * k + quad_lane()).is_short;
    for (int64_t tile = int64_t{blockIdx.x} * kTileRows; tile < in.count; tile += int64_t{gridDim.x} * kTileRows) {
      // The rows of a warp lie together, so that what it writes does.
      const int64_t first_row = tile + warp * 8 * kRows + lane / 4;
      const auto row = [&](int r) { return in.row(smaller(first_row + 8 * r, in.count - 1)); };
      // |x - y| or 1 - cos of the quad's rows from the group's candidates, by squared differences; a lane keeps kOwn.
      T distances[kRows][kOwn];
      unsigned open = 0;  // bit r * kOwn + k: this distance takes more than squared differences
      {
        ComparedRow<T> rows[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) rows[r] = row(r);
        T squares[kRows][kGroup];
        sum_squares<T>(
            in.row_depth / kChunk<T>,
            [&](int r, int64_t chunk) { return kCosine ? rows[r].values(chunk) : loaded(rows[r].row, chunk); },
            [&](int c, int64_t chunk) { return loaded(others, chunk * kGroup + c); }, squares);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int k = 0; k < kOwn; ++k) {
            const T squared = quad_sums(&squares[r][4 * k]);
            const bool is_open = kCosine ? rows[r].is_short || is_short[k] : !has_root(squared);
            open |= is_open ? 1u << (r * kOwn + k) : 0u;
            // A float's root taken in float64 and then rounded is the same: the second rounding never shows.
            distances[r][k] = kCosine ? distance_of<T>(1 - 0.5 * static_cast<double>(squared), true) : sqrt(squared);
          }
        }
      }
      // Those that squared differences do not give: squares out of range, rows too short for a direction.
      for (int bit = 0; quad_ballot(open != 0) != 0; ++bit) {
        const int r = bit / kOwn, k = bit % kOwn;
        for (unsigned left = quad_ballot((open >> bit & 1u) != 0); left != 0; left &= left - 1) {
          const int owner = __ffs(static_cast<int>(left)) - 1;
          const double found = closeness(row(r), candidate(4 * k + owner), in.row_depth, kCosine);
          if (quad_lane() != owner) continue;
#pragma unroll
          for (int each = 0; each < kRows * kOwn; ++each) {
            if (each == bit) distances[each / kOwn][each % kOwn] = distance_of<T>(found, kCosine);
          }
        }
        open &= ~(1u << bit);
      }
      // How far each row would be from its nearest center with this candidate, and the cost of that.
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t i = first_row + 8 * r;
        if (i >= in.count) continue;
        const T least = first_step ? Limits<T>::kInfinity : in.least[i];
        const int64_t integer = first_step ? 0 : in.integers[i];
#pragma unroll
        for (int k = 0; k < kOwn; ++k) {
          const int64_t c = first + 4 * k + quad_lane();
          if (c >= count) continue;
          const bool nearer = distances[r][k] < least;
          const T remaining = nearer ? distances[r][k] : least;
          own_sums[k] += nearer ? integer_of(scale * in.cost(remaining, i)) : integer;
          own_largest[k].add(in, remaining, i);
          in.distances[c * in.count + i] = remaining;
        }
      }
    }
    // Sums of the candidates' costs, and their largest costs, over the block's rows: by warps, then over the warps.
    __syncthreads();  // all have read the sums of the group before
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      int64_t sum = own_sums[k];
      double most = own_largest[k].value(in);
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) {
        sum += __shfl_xor_sync(kWholeWarp, sum, offset);
        most = larger(most, __shfl_xor_sync(kWholeWarp, most, offset));
      }
      if (lane < 4) {
        sums[warp][4 * k + lane] = sum;
        largest[warp][4 * k + lane] = most;
      }
    }
    __syncthreads();
    const int64_t c = first + threadIdx.x;
    if (threadIdx.x < kGroup && c < count) {
      int64_t sum = 0;
      double most = 0;
#pragma unroll
      for (int from = 0; from < kWarps; ++from) {
        sum += sums[from][threadIdx.x];
        most = larger(largest[from][threadIdx.x], most);
      }
      in.block_sums[c * gridDim.x + blockIdx.x] = sum;
      in.block_largest[c * gridDim.x + blockIdx.x] = most;
    }
  }
  // The last block to end has the sums of all.
  if (is_last_block(&in.state->ticket, gridDim.x)) choose_candidate(in, step, count);
}

}  // namespace deepclust::kmeans

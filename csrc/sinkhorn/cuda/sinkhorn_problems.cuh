// What both directions of Sinkhorn-Knopp do on the device: shares, sums over columns by slices of rows, and their
// merger in a fixed order.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/host_device.h"

namespace deepclust::sinkhorn {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kSliceRows = 32;
constexpr int kTileColumns = 32;  // a lane's each

template <class T>
constexpr int kMinBlocks = sizeof(T) == 8 ? 1 : 2;  // on a multiprocessor, as many as the registers are for

__device__ __forceinline__ int warp_index() { return threadIdx.x / 32; }
__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }

// Elements that a thread adds up before the sum goes on in double, so that the error does not grow with their number.
constexpr unsigned kElementsInT = 64;

enum Side { kSamples, kClusters };

// Where the search for the largest coarse part begins: below all that there is.
template <class T>
constexpr T kNoLargest = -Limits<T>::kMax / 2;

// log u or log v: coarse / epsilon + fine. The coarse part is in the unit of the scores, where those of masked rows and
// columns cancel without rounding, however large. If it is small it is on a grid: sums of coarse parts have no rounding
// then, and the fine part is small too.
template <class T>
struct Logarithm {
  T coarse, fine;

  // Of 0. As finite as the others, and below them, the coarse part is never the largest.
  static __device__ __forceinline__ Logarithm zero() { return {kNoLargest<T>, -Limits<T>::kInfinity}; }
};

// The grid: multiples of some 1/1024 epsilon. Below the limit, sums and differences of them are no longer than T.
template <class T>
struct CoarseGrid {
  T limit;     // 0 if epsilon leaves no room for a grid
  T step;      // a power of two
  T per_step;  // 1 / step
  T steps;     // about as many as are 1 / epsilon

  static CoarseGrid of(double epsilon) {
    constexpr int kMostBits = sizeof(T) == 8 ? 900 : 100;
    const int exponent = std::ilogb(epsilon);
    if (exponent < -kMostBits || exponent > kMostBits) return {0, 1, 1, 0};
    const double step = std::ldexp(1.0, exponent - 10);
    return {static_cast<T>(step * (sizeof(T) == 8 ? 0x1p52 : 0x1p23)), static_cast<T>(step), static_cast<T>(1 / step),
            static_cast<T>(epsilon / step)};
  }

  __device__ __forceinline__ bool has(T x) const { return fabs(x) < limit; }
  __device__ __forceinline__ T round(T x) const { return has(x) ? rint(x * per_step) * step : x; }
};

// All problems, or after of() a single one.
template <class Element>
struct Problems {
  using T = Widened<Element>;
  const Element* scores;                    // (N, K)
  const T* given[2];                        // (N,), (K,) shares as they were passed, or null
  int64_t given_stride[2];                  // from problem to problem
  T* shares[2];                             // (N,), (K,) shares that add up to 1, or their logarithms
  unsigned* invalid;                        // (1,)
  T inverse_epsilon, inverse_epsilon_rest;  // whose sum is 1 / epsilon
  CoarseGrid<T> grid;
  T largest_score;  // what is larger counts as that, so that no sum of coarse parts and no exponent overflows
  int64_t samples, clusters, num_iters;  // N, K, T
  int64_t chunk_rows, chunks, slices, tiles;
  int row_lanes;  // a power of two

  __device__ __forceinline__ int64_t potentials_stride() const { return samples + clusters; }

  __device__ __forceinline__ void move_to(int64_t problem) {
    scores += problem * samples * clusters;
    for (int side = 0; side < 2; ++side) {
      if (given[side] != nullptr) given[side] += problem * given_stride[side];
    }
    shares[kSamples] += problem * samples;
    shares[kClusters] += problem * clusters;
    invalid += problem;
  }

  // The lanes that share a row.
  __device__ __forceinline__ int row_lane() const { return threadIdx.x & (row_lanes - 1); }
  __device__ __forceinline__ unsigned row_mask() const {
    return kWholeWarp >> (32 - row_lanes) << (lane_index() & -row_lanes);
  }
  __device__ __forceinline__ T row_max(T value) const {
    for (int offset = row_lanes / 2; offset > 0; offset /= 2) {
      value = larger(value, __shfl_xor_sync(row_mask(), value, offset));
    }
    return value;
  }
  __device__ __forceinline__ T row_sum(T value) const {
    for (int offset = row_lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(row_mask(), value, offset);
    return value;
  }

  // Calls use(begin, end) for parts of this lane's columns of a row, every row_lanes-th from begin on. The places are
  // narrow: registers are rare.
  template <class Use>
  __device__ __forceinline__ void for_each_part(const Use& use) const {
    const unsigned count = static_cast<unsigned>(clusters), step = kElementsInT * row_lanes;
    for (unsigned begin = row_lane(); begin < count; begin += step) use(begin, smaller(begin + step, count));
  }

  __device__ __forceinline__ T bounded(Element score) const {
    return larger(smaller(widen(score), largest_score), -largest_score);
  }

  // (score + first + second) / epsilon + fine, where both coarse parts are on the grid.
  __device__ __forceinline__ T near_exponent(T score, T first, T second, T fine) const {
    return in_logits(score + (first + second), fine);
  }
  // The same for any coarse parts. The two largest of the three numbers are added first: if all three cancel, that sum
  // has no rounding.
  __device__ __forceinline__ T far_exponent(T score, T first, T second, T fine) const {
    const bool is_first = fabs(first) > fabs(second);
    const T most = is_first ? first : second, least = is_first ? second : first;
    return in_logits(fabs(score) < fabs(least) ? most + least + score : score + most + least, fine);
  }
  __device__ __forceinline__ T in_logits(T x, T fine) const {
    return fma(x, inverse_epsilon, fma(x, inverse_epsilon_rest, fine));
  }
};

// Rows [begin, end) of a problem, a thread block's.
struct Chunk {
  int64_t begin, end;

  template <class Element>
  static __device__ __forceinline__ Chunk of_block(const Problems<Element>& in) {
    const int64_t begin = blockIdx.x % in.chunks * in.chunk_rows;
    return {begin, smaller(begin + in.chunk_rows, in.samples)};
  }

  // Calls visit(n) for every row, in all lanes that share it.
  template <class Element, class Visit>
  __device__ __forceinline__ void for_each_row(const Problems<Element>& in, const Visit& visit) const {
    for (int64_t n = begin + threadIdx.x / in.row_lanes; n < end; n += kThreads / in.row_lanes) visit(n);
  }
};

// The sum over the block, the same in every thread; the order depends on nothing.
__device__ inline double block_sum(double value) {
  DEEPCLUST_SHARED(double, partial, [kWarps]);
  value = warp_sum(value);
  __syncthreads();  // all have read what an earlier call left
  if (lane_index() == 0) partial[warp_index()] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += partial[warp];
  return sum;
}

// combine() over the warps of what lanes of the same index hold, the same in every warp.
template <class T, class Combine>
__device__ T combine_warps(T value, const Combine& combine) {
  DEEPCLUST_SHARED(T, partial, [kWarps][32]);
  __syncthreads();  // all have read what an earlier call left
  partial[warp_index()][lane_index()] = value;
  __syncthreads();
  T result = partial[0][lane_index()];
  for (int warp = 1; warp < kWarps; ++warp) result = combine(result, partial[warp][lane_index()]);
  return result;
}

// Shares that add up to 1, by one thread block; notes where they are no shares.
template <class Element>
__device__ void prepare_shares(const Problems<Element>& in, bool as_logarithms) {
  using T = Widened<Element>;
  bool unfit = false;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const T* given = in.given[side];
    const int64_t count = side == kSamples ? in.samples : in.clusters;
    double sum = static_cast<double>(count);
    if (given != nullptr) {
      sum = 0;
      for (int64_t i = threadIdx.x; i < count; i += kThreads) {
        unfit = unfit || !(given[i] >= 0);
        sum += static_cast<double>(given[i]);
      }
      sum = block_sum(sum);
      unfit = unfit || !(sum > 0 && sum <= Limits<double>::kMax);
    }
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      const T share = static_cast<T>((given == nullptr ? 1.0 : static_cast<double>(given[i])) / sum);
      in.shares[side][i] = as_logarithms ? log(share) : share;
    }
  }
  unfit = __syncthreads_or(unfit);
  if (threadIdx.x == 0) in.invalid[0] = unfit;
}

template <class Element>
__global__ void __launch_bounds__(kThreads, 1) prepare_shares_kernel(Problems<Element> in, bool as_logarithms) {
  in.move_to(blockIdx.x);
  prepare_shares(in, as_logarithms);
}

// partial[slice][k] = sum_of(k, first, last) for all columns and all slices, rows [first, last), of the chunk.
template <class Sum, class Element, class SumOf>
__device__ __forceinline__ void sum_slices(const Problems<Element>& in, const Chunk& chunk,
                                           Sum* partial,  // (slices, K)
                                           const SumOf& sum_of) {
  const int64_t slices = divide_up(chunk.end - chunk.begin, kSliceRows);
  for (int64_t item = warp_index(); item < slices * in.tiles; item += kWarps) {
    const int64_t k = item % in.tiles * kTileColumns + lane_index();
    const int64_t first = chunk.begin + item / in.tiles * kSliceRows;
    if (k < in.clusters) {
      partial[first / kSliceRows * in.clusters + k] = sum_of(k, first, smaller(first + kSliceRows, chunk.end));
    }
  }
}

}  // namespace deepclust::sinkhorn

// Sinkhorn-Knopp on the device, forward: the parts of an iteration, and the kernels they make up.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "sinkhorn/cuda/sinkhorn_problems.cuh"

namespace deepclust::sinkhorn {

// Below, sums and differences of multiples of 1/1024 are no longer than T.
template <class T>
constexpr T kCoarseLimit = T(sizeof(T) == 8 ? int64_t{1} << 42 : 1 << 13);

template <class T>
__device__ __forceinline__ T coarse_part(T x) {
  return fabs(x) < kCoarseLimit<T> ? rint(x * 1024) / 1024 : x;
}

// log u or log v. Exponents can be a hundred times larger than what their rounding may cost, so the logarithm has a
// coarse part, which adds up with other coarse parts without rounding, and the rest.
template <class T>
struct Logarithm {
  T coarse, fine;

  static __device__ __forceinline__ Logarithm zero() { return {-Limits<T>::kInfinity, 0}; }  // of 0

  static __device__ __forceinline__ Logarithm of(double logarithm) {
    const T coarse = coarse_part(static_cast<T>(logarithm));
    return {coarse, fabs(coarse) <= Limits<T>::kMax ? static_cast<T>(logarithm - coarse) : T(0)};
  }

  __device__ __forceinline__ double value() const { return static_cast<double>(coarse) + fine; }
};

// sum exp(x), relative to the coarse part of the largest x.
template <class T>
struct LogSum {
  T largest;
  T sum;
};

template <class Element>
struct SinkhornForwardArguments : Problems<Element> {
  using T = Widened<Element>;
  LogSum<T>* partial;    // (slices, K)
  Logarithm<T>* log_u;   // (N,)
  Logarithm<T>* log_v;   // (2, K) of even and odd iterations
  double* errors;        // (tiles,) or null: never stop early
  unsigned* ticket;      // (1,) or null
  int64_t* used;         // (1,)
  Element* assignments;  // (N, K)
  T* potentials;         // (num_iters, N + K) or null
  double tolerance;

  __device__ __forceinline__ SinkhornForwardArguments of(int64_t problem) const {
    SinkhornForwardArguments in = *this;
    in.move_to(problem);
    in.partial += problem * in.slices * in.clusters;
    in.log_u += problem * in.samples;
    in.log_v += problem * 2 * in.clusters;
    if (errors != nullptr) in.errors += problem * in.tiles;
    if (ticket != nullptr) in.ticket += problem;
    in.used += problem;
    in.assignments += problem * in.samples * in.clusters;
    if (potentials != nullptr) in.potentials += problem * in.num_iters * in.potentials_stride();
    return in;
  }

  __device__ __forceinline__ Logarithm<T>* log_v_of(int64_t iteration) const {
    return log_v + iteration % 2 * this->clusters;
  }

  // score / epsilon + the coarse part of a shift, rounded, of which the largest is found.
  __device__ __forceinline__ T rounded_exponent(T score, const Logarithm<T>& shift) const {
    return fma(score, this->inverse_epsilon, shift.coarse);
  }

  // exp(score / epsilon + shift - largest). Where numbers are huge, all that counts is that the largest becomes 1.
  __device__ __forceinline__ T exponential(T score, const Logarithm<T>& shift, T largest) const {
    const bool exact = fabs(shift.coarse) < kCoarseLimit<T> && fabs(largest) < kCoarseLimit<T>;
    return exp(exact ? fma(score, this->inverse_epsilon, shift.coarse - largest) +
                           fma(score, this->inverse_epsilon_rest, shift.fine)
                     : rounded_exponent(score, shift) - largest + shift.fine);
  }
};

// The first u; notes where a score is not finite.
template <class Element>
__device__ void start_rows(const SinkhornForwardArguments<Element>& in, const Chunk& chunk) {
  using T = Widened<Element>;
  bool unfit = false;
  chunk.for_each_row(in, [&](int64_t n) {
    for (int64_t k = in.row_lane(); k < in.clusters; k += in.row_lanes) {
      unfit = unfit || !(fabs(widen(in.scores[n * in.clusters + k])) <= Limits<T>::kMax);
    }
    if (in.row_lane() == 0) in.log_u[n] = in.shares[kSamples][n] > 0 ? Logarithm<T>{0, 0} : Logarithm<T>::zero();
  });
  if (unfit) atomicOr(in.invalid, 1u);
}

// Sums of u_n exp(s_nk / epsilon) over the slices of a chunk.
template <class Element>
__device__ void sum_columns(const SinkhornForwardArguments<Element>& in, const Chunk& chunk) {
  using T = Widened<Element>;
  sum_slices(in, chunk, in.partial, [&](int64_t k, int64_t first, int64_t last) {
    const auto score = [&](int64_t n) { return in.bounded(in.scores[n * in.clusters + k]); };
    T largest = -Limits<T>::kMax;
#pragma unroll 4
    for (int64_t n = first; n < last; ++n) largest = larger(largest, in.rounded_exponent(score(n), in.log_u[n]));
    largest = coarse_part(largest);
    T sum = 0;
#pragma unroll 4
    for (int64_t n = first; n < last; ++n) sum += in.exponential(score(n), in.log_u[n], largest);
    return LogSum<T>{largest, sum};
  });
}

// log v of a tile of columns, by one thread block, and by how much the columns' sums differed from their shares before.
// A problem that is not valid becomes NaN here, and so all that is computed from log v.
template <class Element>
__device__ void merge_columns(const SinkhornForwardArguments<Element>& in, int64_t iteration, int64_t tile) {
  using T = Widened<Element>;
  const int64_t k = tile * kTileColumns + lane_index();
  const bool present = k < in.clusters;
  T largest = -Limits<T>::kMax;
  for (int64_t slice = warp_index(); slice < in.slices && present; slice += kWarps) {
    largest = larger(largest, in.partial[slice * in.clusters + k].largest);
  }
  largest = combine_warps(largest, [](T x, T y) { return larger(x, y); });
  double sum = 0;
  for (int64_t slice = warp_index(); slice < in.slices && present; slice += kWarps) {
    const LogSum<T> part = in.partial[slice * in.clusters + k];
    sum += static_cast<double>(part.sum * exp(part.largest - largest));
  }
  sum = combine_warps(sum, [](double x, double y) { return x + y; });
  if (warp_index() != 0) return;
  double error = 0;
  if (present) {
    const double log_sum = in.invalid[0] != 0 ? Limits<double>::kNan : static_cast<double>(largest) + log(sum);
    const double share = in.shares[kClusters][k];
    if (iteration > 0) error = fabs(exp(log_sum + in.log_v_of(iteration - 1)[k].value()) - share);
    in.log_v_of(iteration)[k] = Logarithm<T>::of(log(share) - log_sum);
    if (in.potentials != nullptr) {
      in.potentials[iteration * in.potentials_stride() + in.samples + k] = static_cast<T>(-log_sum);
    }
  }
  if (in.errors == nullptr) return;
  error = warp_sum(error);
  if (lane_index() == 0) in.errors[tile] = error;
}

// Whether the columns' sums were near enough to their shares; the same in every thread.
template <class Element>
__device__ bool is_near_enough(const SinkhornForwardArguments<Element>& in) {
  double error = 0;
  for (int64_t tile = threadIdx.x; tile < in.tiles; tile += kThreads) error += in.errors[tile];
  return block_sum(error) <= in.tolerance;
}

template <class Element>
__device__ __forceinline__ LogSum<Widened<Element>> sum_row(const SinkhornForwardArguments<Element>& in, int64_t n,
                                                            const Logarithm<Widened<Element>>* log_v) {
  using T = Widened<Element>;
  const auto score = [&](int64_t k) { return in.bounded(in.scores[n * in.clusters + k]); };
  T largest = -Limits<T>::kMax;
#pragma unroll 4
  for (int64_t k = in.row_lane(); k < in.clusters; k += in.row_lanes) {
    largest = larger(largest, in.rounded_exponent(score(k), log_v[k]));
  }
  largest = coarse_part(in.row_max(largest));
  T sum = 0;
#pragma unroll 4
  for (int64_t k = in.row_lane(); k < in.clusters; k += in.row_lanes)
    sum += in.exponential(score(k), log_v[k], largest);
  return {largest, in.row_sum(sum)};
}

// log u of an iteration, for the rows of a chunk.
template <class Element>
__device__ void scale_rows(const SinkhornForwardArguments<Element>& in, int64_t iteration, const Chunk& chunk) {
  using T = Widened<Element>;
  chunk.for_each_row(in, [&](int64_t n) {
    const LogSum<T> sum = sum_row(in, n, in.log_v_of(iteration));
    if (in.row_lane() != 0) return;
    const T ratio = in.shares[kSamples][n] / sum.sum;
    const T coarse = coarse_part(log(ratio));
    in.log_u[n] = ratio == 0 ? Logarithm<T>::zero() : Logarithm<T>{coarse - sum.largest, log(ratio * exp(-coarse))};
    if (in.potentials != nullptr) {
      in.potentials[iteration * in.potentials_stride() + n] = -(sum.largest + log(sum.sum));
    }
  });
}

// The assignments after an iteration, for the rows of a chunk: relative to the sum of the row, which is so kept to
// rounding.
template <class Element>
__device__ void write_rows(const SinkhornForwardArguments<Element>& in, int64_t iteration, const Chunk& chunk) {
  using T = Widened<Element>;
  const Logarithm<T>* log_v = in.log_v_of(iteration);
  chunk.for_each_row(in, [&](int64_t n) {
    const LogSum<T> sum = sum_row(in, n, log_v);
    const T scale = in.shares[kSamples][n] * static_cast<T>(in.samples) / sum.sum;
    for (int64_t k = in.row_lane(); k < in.clusters; k += in.row_lanes) {
      const int64_t at = n * in.clusters + k;
      in.assignments[at] = narrow<Element>(in.exponential(in.bounded(in.scores[at]), log_v[k], sum.largest) * scale);
    }
    if (in.potentials != nullptr && in.row_lane() == 0) {
      in.potentials[iteration * in.potentials_stride() + n] = -(sum.largest + log(sum.sum));
    }
  });
}

// A problem of one chunk, by one thread block.
template <class Element>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Widened<Element>>)
    solve_kernel(const SinkhornForwardArguments<Element> all) {
  const SinkhornForwardArguments<Element> in = all.of(blockIdx.x);
  const Chunk chunk{0, in.samples};
  prepare_shares(in, false);
  __syncthreads();
  start_rows(in, chunk);
  __syncthreads();
  sum_columns(in, chunk);
  int64_t used = 0;
  while (true) {
    __syncthreads();
    for (int64_t tile = 0; tile < in.tiles; ++tile) merge_columns(in, used, tile);
    __syncthreads();
    if (in.errors != nullptr && used > 0 && is_near_enough(in)) break;
    if (++used == in.num_iters) break;
    scale_rows(in, used - 1, chunk);
    __syncthreads();
    sum_columns(in, chunk);
  }
  write_rows(in, used - 1, chunk);
  if (threadIdx.x == 0) in.used[0] = used;
}

// After prepare_shares_kernel: the first sums.
template <class Element>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Widened<Element>>)
    start_kernel(const SinkhornForwardArguments<Element> all) {
  const SinkhornForwardArguments<Element> in = all.of(blockIdx.x / all.chunks);
  const Chunk chunk = Chunk::of_block(in);
  if (chunk.begin == 0 && threadIdx.x == 0) {
    in.used[0] = in.num_iters;
    if (in.ticket != nullptr) in.ticket[0] = 0;
  }
  start_rows(in, chunk);
  __syncthreads();
  sum_columns(in, chunk);
}

// Before every iteration: a thread block for every tile of columns. The last one of a problem decides whether it stops.
template <class Element>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Widened<Element>>)
    merge_kernel(const SinkhornForwardArguments<Element> all, int64_t iteration) {
  const SinkhornForwardArguments<Element> in = all.of(blockIdx.x / all.tiles);
  if (in.used[0] < iteration) return;  // has stopped; else it is num_iters
  merge_columns(in, iteration, blockIdx.x % in.tiles);
  if (in.errors == nullptr || iteration == 0) return;
  if (!is_last_block(in.ticket, static_cast<unsigned>(in.tiles))) return;
  const bool stops = is_near_enough(in);
  if (threadIdx.x != 0) return;
  atomicExch(in.ticket, 0u);
  if (stops) in.used[0] = iteration;
}

// An iteration, of which the last one writes the assignments, also of problems that stopped before.
template <class Element>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Widened<Element>>)
    iterate_kernel(const SinkhornForwardArguments<Element> all, int64_t iteration) {
  const SinkhornForwardArguments<Element> in = all.of(blockIdx.x / all.chunks);
  const Chunk chunk = Chunk::of_block(in);
  if (iteration + 1 == in.num_iters) {
    write_rows(in, in.used[0] - 1, chunk);
    return;
  }
  if (in.used[0] <= iteration) return;
  scale_rows(in, iteration, chunk);
  __syncthreads();
  sum_columns(in, chunk);
}

}  // namespace deepclust::sinkhorn

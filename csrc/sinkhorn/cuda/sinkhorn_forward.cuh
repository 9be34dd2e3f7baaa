// Sinkhorn-Knopp on the device, forward: the parts of an iteration, and the kernels they make up.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "sinkhorn/cuda/sinkhorn_problems.cuh"

namespace deepclust::sinkhorn {

// sum exp(x), relative to largest / epsilon + offset. The largest is a coarse part, and if all coarse parts are on the
// grid, the offset is 0; else it is the largest of what the sums of coarse parts leave.
template <class T>
struct LogSum {
  T largest, offset;
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
  T* potentials;         // (num_iters, 2, N + K) or null
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
    if (potentials != nullptr) in.potentials += problem * in.num_iters * 2 * in.potentials_stride();
    return in;
  }

  __device__ __forceinline__ Logarithm<T>* log_v_of(int64_t iteration) const {
    return log_v + iteration % 2 * this->clusters;
  }

  // log exp((score + shift - largest) / epsilon).
  __device__ __forceinline__ T near(T score, const Logarithm<T>& shift, T largest) const {
    return this->near_exponent(score, shift.coarse, -largest, shift.fine);
  }
  __device__ __forceinline__ T far(T score, const Logarithm<T>& shift, T largest) const {
    return this->far_exponent(score, shift.coarse, -largest, shift.fine);
  }

  __device__ __forceinline__ double logits_of(double coarse) const {
    return coarse * (static_cast<double>(this->inverse_epsilon) + static_cast<double>(this->inverse_epsilon_rest));
  }

  // What of a logarithm goes to a coarse part beside -largest.
  __device__ __forceinline__ T coarse_part(T logarithm, T largest) const {
    return this->grid.has(largest) ? rint(logarithm * this->grid.steps) * this->grid.step : T(0);
  }

  // Potentials are of the sums: 1 / sum, where it is relative to `largest`.
  __device__ __forceinline__ void keep(int64_t iteration, int64_t at, T largest, T log_sum) const {
    T* const kept = potentials + iteration * 2 * this->potentials_stride() + at;
    kept[0] = -largest;
    kept[this->potentials_stride()] = -log_sum;
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
    const Logarithm<T>* log_u = in.log_u + first;
    const Element* scores = in.scores + first * in.clusters + k;
    const auto score = [&](int n) { return in.bounded(scores[n * in.clusters]); };
    const int rows = static_cast<int>(last - first);
    T largest = kNoLargest<T>, reach = 0, offset = 0, sum = 0;
#pragma unroll 4
    for (int n = 0; n < rows; ++n) {
      largest = larger(largest, score(n) + log_u[n].coarse);
      reach = larger(reach, fabs(log_u[n].coarse));
    }
    largest = in.grid.round(largest);
    if (in.grid.has(reach) && in.grid.has(largest)) {
#pragma unroll 4
      for (int n = 0; n < rows; ++n) sum += exp(in.near(score(n), log_u[n], largest));
    } else {
      offset = -Limits<T>::kMax;
#pragma unroll 1
      for (int n = 0; n < rows; ++n) offset = larger(offset, in.far(score(n), log_u[n], largest));
#pragma unroll 1
      for (int n = 0; n < rows; ++n) sum += exp(in.far(score(n), log_u[n], largest) - offset);
    }
    return LogSum<T>{largest, offset, sum};
  });
}

// log v of a tile of columns, by one thread block, and by how much the columns' sums differed from their shares before.
// A problem that is not valid becomes NaN here, and so all that is computed from log v.
template <class Element>
__device__ void merge_columns(const SinkhornForwardArguments<Element>& in, int64_t iteration, int64_t tile) {
  using T = Widened<Element>;
  const int64_t k = tile * kTileColumns + lane_index();
  const bool present = k < in.clusters;
  // Step 1: the slices' logarithmic sums of column k become one: the largest shift, the largest offset from it, and the
  // sum of what is left.
  T largest = kNoLargest<T>;
  for (int64_t slice = warp_index(); slice < in.slices && present; slice += kWarps) {
    largest = larger(largest, in.partial[slice * in.clusters + k].largest);
  }
  largest = combine_warps(largest, [](T x, T y) { return larger(x, y); });
  const auto offset_of = [&](const LogSum<T>& part) {
    return static_cast<T>(in.logits_of(part.largest - largest) + static_cast<double>(part.offset));
  };
  T offset = -Limits<T>::kMax;
  for (int64_t slice = warp_index(); slice < in.slices && present; slice += kWarps) {
    offset = larger(offset, offset_of(in.partial[slice * in.clusters + k]));
  }
  offset = combine_warps(offset, [](T x, T y) { return larger(x, y); });
  double sum = 0;
  for (int64_t slice = warp_index(); slice < in.slices && present; slice += kWarps) {
    const LogSum<T> part = in.partial[slice * in.clusters + k];
    sum += static_cast<double>(part.sum * exp(offset_of(part) - offset));
  }
  sum = combine_warps(sum, [](double x, double y) { return x + y; });
  if (warp_index() != 0) return;
  double error = 0;
  if (present) {
    const double log_sum = in.invalid[0] != 0 ? Limits<double>::kNan : static_cast<double>(offset) + log(sum);
    const double share = in.shares[kClusters][k];
    // Step 2: how far the column was from its share under the v before.
    if (iteration > 0) {
      const Logarithm<T> before = in.log_v_of(iteration - 1)[k];
      error = fabs(exp(in.logits_of(static_cast<double>(before.coarse) + largest) + before.fine + log_sum) - share);
    }
    // Step 3: the new log v, log(share) less the logarithmic sum, in a coarse and a fine part.
    const double rest = log(share) - log_sum;
    const T coarse = in.coarse_part(static_cast<T>(rest), largest);
    in.log_v_of(iteration)[k] =
        share == 0 ? Logarithm<T>::zero() : Logarithm<T>{coarse - largest, static_cast<T>(rest - in.logits_of(coarse))};
    if (in.potentials != nullptr) in.keep(iteration, in.samples + k, largest, static_cast<T>(log_sum));
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

template <class T>
struct RowSum : LogSum<T> {
  bool is_near;  // then exponents are
};

template <class Element>
__device__ __forceinline__ RowSum<Widened<Element>> sum_row(const SinkhornForwardArguments<Element>& in, int64_t n,
                                                            const Logarithm<Widened<Element>>* log_v) {
  using T = Widened<Element>;
  const auto score = [&](int64_t k) { return in.bounded(in.scores[n * in.clusters + k]); };
  T largest = kNoLargest<T>, reach = 0;
  in.for_each_part([&](unsigned begin, unsigned end) {
#pragma unroll 4
    for (unsigned k = begin; k < end; k += in.row_lanes) {
      largest = larger(largest, score(k) + log_v[k].coarse);
      reach = larger(reach, fabs(log_v[k].coarse));
    }
  });
  largest = in.grid.round(in.row_max(largest));
  const bool is_near = in.grid.has(in.row_max(reach)) && in.grid.has(largest);
  double sum = 0;
  T offset = 0;
  if (is_near) {
    in.for_each_part([&](unsigned begin, unsigned end) {
      T part = 0;
#pragma unroll 2  // more take more registers than there are for two blocks
      for (unsigned k = begin; k < end; k += in.row_lanes) part += exp(in.near(score(k), log_v[k], largest));
      sum += static_cast<double>(part);
    });
  } else {
    offset = -Limits<T>::kMax;
#pragma unroll 1
    for (unsigned k = in.row_lane(); k < in.clusters; k += in.row_lanes) {
      offset = larger(offset, in.far(score(k), log_v[k], largest));
    }
    offset = in.row_max(offset);
#pragma unroll 1
    for (unsigned k = in.row_lane(); k < in.clusters; k += in.row_lanes) {
      sum += static_cast<double>(exp(in.far(score(k), log_v[k], largest) - offset));
    }
  }
  return {{largest, offset, in.row_sum(static_cast<T>(sum))}, is_near};
}

// log u of an iteration, for the rows of a chunk.
template <class Element>
__device__ void scale_rows(const SinkhornForwardArguments<Element>& in, int64_t iteration, const Chunk& chunk) {
  using T = Widened<Element>;
  chunk.for_each_row(in, [&](int64_t n) {
    const RowSum<T> sum = sum_row(in, n, in.log_v_of(iteration));
    if (in.row_lane() != 0) return;
    const T ratio = in.shares[kSamples][n] / sum.sum;
    const T coarse = in.coarse_part(log(ratio) - sum.offset, sum.largest);
    const T logarithm = in.in_logits(coarse, T(0));
    const T lost = in.in_logits(coarse, -logarithm);
    const T fine = sum.offset == 0 ? log(ratio * exp(-logarithm)) : log(ratio) - sum.offset - logarithm;
    in.log_u[n] = ratio == 0 ? Logarithm<T>::zero() : Logarithm<T>{coarse - sum.largest, fine - lost};
    if (in.potentials != nullptr) in.keep(iteration, n, sum.largest, sum.offset + log(sum.sum));
  });
}

// The assignments after an iteration, for the rows of a chunk: relative to the sum of the row, which is so kept to
// rounding.
template <class Element>
__device__ void write_rows(const SinkhornForwardArguments<Element>& in, int64_t iteration, const Chunk& chunk) {
  using T = Widened<Element>;
  const Logarithm<T>* log_v = in.log_v_of(iteration);
  chunk.for_each_row(in, [&](int64_t n) {
    const RowSum<T> sum = sum_row(in, n, log_v);
    const T scale = in.shares[kSamples][n] * static_cast<T>(in.samples) / sum.sum;
    for (unsigned k = in.row_lane(); k < in.clusters; k += in.row_lanes) {
      const int64_t at = n * in.clusters + k;
      const T score = in.bounded(in.scores[at]);
      const T exponent =
          sum.is_near ? in.near(score, log_v[k], sum.largest) : in.far(score, log_v[k], sum.largest) - sum.offset;
      in.assignments[at] = narrow<Element>(exp(exponent) * scale);
    }
    if (in.potentials != nullptr && in.row_lane() == 0) {
      in.keep(iteration, n, sum.largest, sum.offset + log(sum.sum));
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
  int used = 0;
  while (true) {
    __syncthreads();
    for (int tile = 0; tile < in.tiles; ++tile) merge_columns(in, used, tile);
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

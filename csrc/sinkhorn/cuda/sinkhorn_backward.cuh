// Sinkhorn-Knopp on the device, backward: from the potentials of every iteration, of which each is a softmax.
//
// The gradient by s / epsilon of an element is a sum over the iterations, each with a factor by column and one by row.
// These factors are all that the passes find, from the last iteration to the first; then every element adds up its sum.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "sinkhorn/cuda/sinkhorn_problems.cuh"

namespace deepclust::sinkhorn {

// The shares are logarithms here.
template <class Element>
struct SinkhornBackwardArguments : Problems<Element> {
  using T = Widened<Element>;
  const Element* grad;   // (N, K)
  const int64_t* used;   // (1,)
  const T* potentials;   // (num_iters, 2, N + K)
  T* means;              // (N,)
  T* by_sample;          // (num_iters, N) by log u of the iteration before; of the first one not used
  T* by_cluster;         // (num_iters, K) by log v
  T* partial;            // (slices, K)
  Element* grad_scores;  // (N, K)

  __device__ __forceinline__ SinkhornBackwardArguments of(int64_t problem) const {
    SinkhornBackwardArguments in = *this;
    in.move_to(problem);
    in.grad += problem * in.samples * in.clusters;
    in.used += problem;
    in.potentials += problem * in.num_iters * 2 * in.potentials_stride();
    in.means += problem * in.samples;
    in.by_sample += problem * in.num_iters * in.samples;
    in.by_cluster += problem * in.num_iters * in.clusters;
    in.partial += problem * in.slices * in.clusters;
    in.grad_scores += problem * in.samples * in.clusters;
    return in;
  }

  // log(u / r) and log(v / c) after an iteration.
  __device__ __forceinline__ Logarithm<T> sample_potential(int64_t iteration, int64_t n) const {
    const T* kept = potentials + iteration * 2 * this->potentials_stride() + n;
    return {kept[0], kept[this->potentials_stride()]};
  }
  __device__ __forceinline__ Logarithm<T> cluster_potential(int64_t iteration, int64_t k) const {
    return sample_potential(iteration, this->samples + k);
  }

  // log u after an iteration, of which -1 is the start.
  __device__ __forceinline__ Logarithm<T> log_u(int64_t iteration, int64_t n) const {
    const T log_share = this->shares[kSamples][n];
    if (iteration < 0) return {0, log_share > -Limits<T>::kInfinity ? T(0) : log_share};
    const Logarithm<T> potential = sample_potential(iteration, n);
    return {potential.coarse, potential.fine + log_share};
  }
  __device__ __forceinline__ Logarithm<T> log_v(int64_t iteration, int64_t k) const {
    const Logarithm<T> potential = cluster_potential(iteration, k);
    return {potential.coarse, potential.fine + this->shares[kClusters][k]};
  }

  __device__ __forceinline__ bool is_invalid() const {
    return this->invalid[0] != 0 || !(fabs(potentials[this->potentials_stride()]) <= Limits<T>::kMax);
  }

  // The element of the scores at (n, k), as a share: of a column's sum in v, or of a row's in u.
  __device__ __forceinline__ T share_of(int64_t n, int64_t k, const Logarithm<T>& u, const Logarithm<T>& v) const {
    const T score = this->bounded(this->scores[n * this->clusters + k]);
    const T fine = u.fine + v.fine;
    const T exponent = this->grid.has(u.coarse) && this->grid.has(v.coarse)
                           ? this->near_exponent(score, u.coarse, v.coarse, fine)
                           : this->far_exponent(score, u.coarse, v.coarse, fine);
    // At most 1 but for rounding, which is no longer small where sums do not cancel.
    return exp(smaller(exponent, T(1)));
  }
  __device__ __forceinline__ T share_of_column(int64_t iteration, int64_t n, int64_t k) const {
    return share_of(n, k, log_u(iteration - 1, n), cluster_potential(iteration, k));
  }
  __device__ __forceinline__ T share_of_row(int64_t iteration, int64_t n, int64_t k) const {
    return share_of(n, k, sample_potential(iteration, n), log_v(iteration, k));
  }
  __device__ __forceinline__ T assignment(int64_t last, int64_t n, int64_t k) const {
    return share_of(n, k, log_u(last, n), log_v(last, k));
  }

  // The gradient by s / epsilon as far as u of the last iteration. Less the mean: the row's sum is fixed, and what is
  // equal in all its elements has no effect.
  __device__ __forceinline__ T first_term(int64_t last, int64_t n, int64_t k) const {
    return assignment(last, n, k) * (widen(grad[n * this->clusters + k]) - means[n]) * static_cast<T>(this->samples);
  }
};

// Means of the gradient over the rows of a chunk, weighted by the assignments.
template <class Element>
__device__ void average_rows(const SinkhornBackwardArguments<Element>& in, const Chunk& chunk) {
  using T = Widened<Element>;
  const int64_t last = in.used[0] - 1;
  chunk.for_each_row(in, [&](int64_t n) {
    double sums = 0, weighted_sums = 0;
    in.for_each_part([&](unsigned begin, unsigned end) {
      T sum = 0, weighted = 0;
#pragma unroll 1  // more take more registers than there are for two blocks
      for (unsigned k = begin; k < end; k += in.row_lanes) {
        const T share = in.assignment(last, n, k);
        sum += share;
        weighted += share * widen(in.grad[n * in.clusters + k]);
      }
      sums += static_cast<double>(sum);
      weighted_sums += static_cast<double>(weighted);
    });
    const T sum = in.row_sum(static_cast<T>(sums)), weighted = in.row_sum(static_cast<T>(weighted_sums));
    if (in.row_lane() == 0) in.means[n] = sum > 0 ? weighted / sum : T(0);
  });
}

// Sums of value_of(n, k) over the slices of a chunk, kUnroll at once: more take more registers than there are for two
// blocks.
template <int kUnroll, class Element, class ValueOf>
__device__ __forceinline__ void sum_values(const SinkhornBackwardArguments<Element>& in, const Chunk& chunk,
                                           const ValueOf& value_of) {
  using T = Widened<Element>;
  sum_slices(in, chunk, in.partial, [&](int64_t k, int64_t first, int64_t last) {
    T sum = 0;
#pragma unroll kUnroll
    for (int64_t n = first; n < last; ++n) sum += value_of(n, k);
    return sum;
  });
}

template <class Element>
__device__ void sum_first_terms(const SinkhornBackwardArguments<Element>& in, const Chunk& chunk) {
  const int64_t last = in.used[0] - 1;
  sum_values<1>(in, chunk, [&](int64_t n, int64_t k) { return in.first_term(last, n, k); });
}

// by_cluster of an iteration for a tile of columns, by one thread block.
template <class Element>
__device__ void merge_gradients(const SinkhornBackwardArguments<Element>& in, int64_t iteration, int64_t tile) {
  using T = Widened<Element>;
  const int64_t k = tile * kTileColumns + lane_index();
  const bool present = k < in.clusters;
  double sum = 0;
  for (int64_t slice = warp_index(); slice < in.slices && present; slice += kWarps) {
    sum += static_cast<double>(in.partial[slice * in.clusters + k]);
  }
  sum = combine_warps(sum, [](double x, double y) { return x + y; });
  if (warp_index() == 0 && present) in.by_cluster[iteration * in.clusters + k] = static_cast<T>(sum);
}

// Through v_k = c_k / sum_n u_n exp(s_nk / epsilon): by_sample of an iteration, for the rows of a chunk.
template <class Element>
__device__ void gradient_through_columns(const SinkhornBackwardArguments<Element>& in, int64_t iteration,
                                         const Chunk& chunk) {
  using T = Widened<Element>;
  const T* by_cluster = in.by_cluster + iteration * in.clusters;
  chunk.for_each_row(in, [&](int64_t n) {
    double sums = 0;
    in.for_each_part([&](unsigned begin, unsigned end) {
      T sum = 0;
      for (unsigned k = begin; k < end; k += in.row_lanes) {
        sum -= in.share_of_column(iteration, n, k) * by_cluster[k];
      }
      sums += static_cast<double>(sum);
    });
    const T sum = in.row_sum(static_cast<T>(sums));
    if (in.row_lane() == 0) in.by_sample[iteration * in.samples + n] = sum;
  });
}

// Through u_n = r_n / sum_k v_k exp(s_nk / epsilon) of the iteration before: sums over the slices of a chunk.
template <class Element>
__device__ void gradient_through_rows(const SinkhornBackwardArguments<Element>& in, int64_t iteration,
                                      const Chunk& chunk) {
  const auto* by_sample = in.by_sample + iteration * in.samples;
  sum_values<2>(in, chunk, [&](int64_t n, int64_t k) { return -in.share_of_row(iteration - 1, n, k) * by_sample[n]; });
}

// The gradient for the rows of a chunk.
template <class Element>
__device__ void write_gradient(const SinkhornBackwardArguments<Element>& in, const Chunk& chunk) {
  using T = Widened<Element>;
  const bool invalid = in.is_invalid();
  const int64_t last = in.used[0] - 1;
  chunk.for_each_row(in, [&](int64_t n) {
    for (int64_t k = in.row_lane(); k < in.clusters; k += in.row_lanes) {
      T sum = Limits<T>::kNan;
      if (!invalid) {
        sum = in.first_term(last, n, k);
        for (int64_t iteration = last; iteration > 0; --iteration) {
          sum -= in.share_of_column(iteration, n, k) * in.by_cluster[iteration * in.clusters + k];
          sum -= in.share_of_row(iteration - 1, n, k) * in.by_sample[iteration * in.samples + n];
        }
        sum -= in.share_of_column(0, n, k) * in.by_cluster[k];
      }
      in.grad_scores[n * in.clusters + k] = narrow<Element>(sum * in.inverse_epsilon);
    }
  });
}

// A problem of one chunk, by one thread block.
template <class Element>
__global__ void __launch_bounds__(kThreads, 1) gradient_kernel(const SinkhornBackwardArguments<Element> all) {
  const SinkhornBackwardArguments<Element> in = all.of(blockIdx.x);
  const Chunk chunk{0, in.samples};
  prepare_shares(in, true);
  __syncthreads();
  if (!in.is_invalid()) {
    average_rows(in, chunk);
    __syncthreads();
    sum_first_terms(in, chunk);
    for (int64_t iteration = in.used[0] - 1;; --iteration) {
      __syncthreads();
      for (int64_t tile = 0; tile < in.tiles; ++tile) merge_gradients(in, iteration, tile);
      __syncthreads();
      if (iteration == 0) break;
      gradient_through_columns(in, iteration, chunk);
      __syncthreads();
      gradient_through_rows(in, iteration, chunk);
    }
  }
  write_gradient(in, chunk);
}

// After prepare_shares_kernel: the first sums.
template <class Element>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Widened<Element>>)
    start_gradient_kernel(const SinkhornBackwardArguments<Element> all) {
  const SinkhornBackwardArguments<Element> in = all.of(blockIdx.x / all.chunks);
  const Chunk chunk = Chunk::of_block(in);
  if (in.is_invalid()) return;
  average_rows(in, chunk);
  __syncthreads();
  sum_first_terms(in, chunk);
}

// For every iteration, from the last: a thread block for every tile of columns. Problems that stopped before wait.
template <class Element>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Widened<Element>>)
    merge_gradient_kernel(const SinkhornBackwardArguments<Element> all, int64_t iteration) {
  const SinkhornBackwardArguments<Element> in = all.of(blockIdx.x / all.tiles);
  if (in.is_invalid() || iteration >= in.used[0]) return;
  merge_gradients(in, iteration, blockIdx.x % in.tiles);
}

// An iteration but the first.
template <class Element>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Widened<Element>>)
    iterate_gradient_kernel(const SinkhornBackwardArguments<Element> all, int64_t iteration) {
  const SinkhornBackwardArguments<Element> in = all.of(blockIdx.x / all.chunks);
  if (in.is_invalid() || iteration >= in.used[0]) return;
  const Chunk chunk = Chunk::of_block(in);
  gradient_through_columns(in, iteration, chunk);
  __syncthreads();
  gradient_through_rows(in, iteration, chunk);
}

template <class Element>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Widened<Element>>)
    write_gradient_kernel(const SinkhornBackwardArguments<Element> all) {
  const SinkhornBackwardArguments<Element> in = all.of(blockIdx.x / all.chunks);
  write_gradient(in, Chunk::of_block(in));
}

}  // namespace deepclust::sinkhorn

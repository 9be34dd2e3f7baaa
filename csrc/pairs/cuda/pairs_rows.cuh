// What is done with the logits of a row or a pair, by a thread block: from logits to shares, to the information and to
// its gradient.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/host_device.h"

namespace deepclust::pairs {

// Of a thread block with a row: a short row is one warp's, which waits for no other.
constexpr int kManyWarps = 8;
constexpr int64_t kOneWarpClusters = 512;

// Reductions over the block, the same in every thread; the order depends on nothing.
template <int kWarps, class T, int kCount, class Merge>
__device__ __forceinline__ void merge_over_block(T (&values)[kCount], const Merge& merge) {
#pragma unroll
  for (int v = 0; v < kCount; ++v) {
    for (int offset = 16; offset > 0; offset /= 2) {
      values[v] = merge(values[v], __shfl_xor_sync(kWholeWarp, values[v], offset));
    }
  }
  if constexpr (kWarps > 1) {
    DEEPCLUST_SHARED(T, partial, [kWarps][kCount]);
    __syncthreads();  // all have read what an earlier call left
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][v] = values[v];
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      values[v] = partial[0][v];
      for (int warp = 1; warp < kWarps; ++warp) values[v] = merge(values[v], partial[warp][v]);
    }
  }
}

template <int kWarps, class T, int kCount>
__device__ __forceinline__ void max_over_block(T (&values)[kCount]) {
  merge_over_block<kWarps>(values, [](T x, T y) { return larger(x, y); });
}

template <int kWarps, class T, int kCount>
__device__ __forceinline__ void add_over_block(T (&values)[kCount]) {
  merge_over_block<kWarps>(values, [](T x, T y) { return x + y; });
}

// The largest values of two rows; says so if a value is not finite.
template <int kWarps, class T>
__device__ __forceinline__ void largest_of_rows(const T* first, const T* second, int64_t clusters, unsigned* invalid,
                                                T (&largest)[2]) {
  bool finite = true;
  largest[0] = largest[1] = -Limits<T>::kInfinity;
  for (int64_t k = threadIdx.x; k < clusters; k += 32 * kWarps) {
    const T x = first[k], y = second[k];
    finite = finite && fabs(x) <= Limits<T>::kMax && fabs(y) <= Limits<T>::kMax;
    largest[0] = larger(largest[0], x);
    largest[1] = larger(largest[1], y);
  }
  if (!finite) atomicOr(invalid, 1u);
  max_over_block<kWarps>(largest);
}

// Logarithms of the distribution and weights of the pairs in the accumulation type; says so if one is not finite.
template <class Element>
__global__ void __launch_bounds__(32 * kManyWarps)
    widen_shares_kernel(const Element* distribution /* (K,) */, int64_t clusters,
                        const Element* pair_weights /* (B,) */, int64_t pairs, Widened<Element>* log_shares /* (K,) */,
                        Widened<Element>* weights /* (B,) */, unsigned* invalid) {
  using T = Widened<Element>;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  bool finite = true;
  if (i < clusters) {
    const T share = widen(distribution[i]);
    finite = fabs(share) <= Limits<T>::kMax;
    log_shares[i] = log(larger(share, Limits<T>::kTiny));
  }
  if (i < pairs) {
    weights[i] = widen(pair_weights[i]);
    finite = finite && fabs(weights[i]) <= Limits<T>::kMax;
  }
  if (!finite) atomicOr(invalid, 1u);
}

// Rows of some pairs, all first ones before the others.
template <class T>
struct PairRows {
  T* students;          // (2 count, K) logits, in whose place the gradient by them comes
  const T* teachers;    // (2 count, K) logits
  const T* log_shares;  // (K,)
  const T* weights;     // (count,)
  double* values;       // (2 count,)
  unsigned* invalid;
  int64_t count, clusters;
  T beta;
  double slope;  // beta / (2 B temperature)
};

// A row of the student by its own logits s and the other row's logits t of the teacher. All exponents are relative to
// the largest ones, so that these cancel: information = max v + log sum exp(v - max v) - beta (log sum exp(t - max t) +
// log sum exp(s - max s)) with v = beta ((s - max s) + (t - max t)) - log distribution.
template <class T, int kWarps>
__global__ void __launch_bounds__(32 * kWarps) pair_rows_kernel(const PairRows<T> in) {
  const int64_t row = blockIdx.x, pair = row < in.count ? row : row - in.count;
  const int64_t other = row < in.count ? row + in.count : pair;
  T* student = in.students + row * in.clusters;
  const T* teacher = in.teachers + other * in.clusters;
  const auto for_each = [&](auto&& visit) {
    for (int64_t k = threadIdx.x; k < in.clusters; k += 32 * kWarps) visit(k);
  };
  T largest[2];
  largest_of_rows<kWarps>(student, teacher, in.clusters, in.invalid, largest);
  const auto joint = [&](int64_t k) {
    return in.beta * ((student[k] - largest[0]) + (teacher[k] - largest[1])) - in.log_shares[k];
  };
  T joint_largest[1] = {-Limits<T>::kInfinity}, sums[2] = {}, joint_sum[1] = {};
  for_each([&](int64_t k) {
    sums[0] += exp(student[k] - largest[0]);
    sums[1] += exp(teacher[k] - largest[1]);
    joint_largest[0] = larger(joint_largest[0], joint(k));
  });
  add_over_block<kWarps>(sums);
  max_over_block<kWarps>(joint_largest);
  for_each([&](int64_t k) { joint_sum[0] += exp(joint(k) - joint_largest[0]); });
  add_over_block<kWarps>(joint_sum);
  if (threadIdx.x == 0) {
    const double logarithms = log(static_cast<double>(sums[0])) + log(static_cast<double>(sums[1]));
    const double information = joint_largest[0] + log(static_cast<double>(joint_sum[0])) - in.beta * logarithms;
    in.values[row] = in.weights[pair] * information;
  }
  const T slope = static_cast<T>(in.weights[pair] * in.slope);
  const T inverse_joint = 1 / joint_sum[0], inverse = 1 / sums[0];
  for_each([&](int64_t k) {
    const T shares = exp(student[k] - largest[0]) * inverse;
    student[k] = slope * (exp(joint(k) - joint_largest[0]) * inverse_joint - shares);
  });
}

// A pair: its agreement, and shares in place of logits.
template <class T, int kWarps>
__global__ void __launch_bounds__(32 * kWarps)
    pair_shares_kernel(T* logits /* (2 count, K) */, int64_t count, int64_t clusters, T* agreement /* (count,) */,
                       double* largest_shares /* (count,) of both rows */, unsigned* invalid) {
  const int64_t pair = blockIdx.x;
  T *first = logits + pair * clusters, *second = logits + (count + pair) * clusters;
  T largest[2];
  largest_of_rows<kWarps>(first, second, clusters, invalid, largest);
  T sums[2] = {};
  for (int64_t k = threadIdx.x; k < clusters; k += 32 * kWarps) {
    first[k] = exp(first[k] - largest[0]);
    second[k] = exp(second[k] - largest[1]);
    sums[0] += first[k];
    sums[1] += second[k];
  }
  add_over_block<kWarps>(sums);
  T products[1] = {};
  for (int64_t k = threadIdx.x; k < clusters; k += 32 * kWarps) {
    first[k] /= sums[0];
    second[k] /= sums[1];
    products[0] += first[k] * second[k];
  }
  add_over_block<kWarps>(products);
  if (threadIdx.x == 0) {
    agreement[pair] = products[0];
    largest_shares[pair] = 1 / static_cast<double>(sums[0]) + 1 / static_cast<double>(sums[1]);
  }
}

// Block (32 columns, part of the rows): each warp adds up some rows.
template <class T>
__global__ void __launch_bounds__(32 * kManyWarps)
    sum_columns_kernel(const T* shares /* (rows, K) */, int64_t rows, int64_t clusters, int64_t part_rows,
                       double* part_sums /* (parts, K) */) {
  DEEPCLUST_SHARED(double, partial, [kManyWarps][32]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t k = int64_t{blockIdx.x} * 32 + lane;
  const int64_t first = blockIdx.y * part_rows, last = smaller(first + part_rows, rows);
  double sum = 0;
  for (int64_t row = first + warp; k < clusters && row < last; row += kManyWarps) sum += shares[row * clusters + k];
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || k >= clusters) return;
  for (int other = 1; other < kManyWarps; ++other) sum += partial[other][lane];
  part_sums[blockIdx.y * clusters + k] = sum;
}

// The mean of values that belong to rows, by the first thread block.
template <class T>
__device__ __forceinline__ void write_mean(const double* values, int64_t count, int64_t rows, bool valid, T* mean) {
  if (blockIdx.x != 0) return;
  double sum[1] = {};
  for (int64_t i = threadIdx.x; i < count; i += 32 * kManyWarps) sum[0] += values[i];
  sum_over_block<kManyWarps>(sum);
  if (threadIdx.x == 0) *mean = valid ? static_cast<T>(sum[0] / larger<int64_t>(rows, 1)) : Limits<T>::kNan;
}

template <class T>
__device__ __forceinline__ void fill_with_nan(T* values, int64_t count) {
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += threads) {
    values[i] = Limits<T>::kNan;
  }
}

// Of inputs that are not finite all results are NaN.
template <class T>
__global__ void __launch_bounds__(32 * kManyWarps)
    finish_information_kernel(const double* values /* (rows,) */, int64_t rows, const unsigned* invalid, T* information,
                              T* grad_rows, int64_t row_elements, T* grad_weight, int64_t weight_elements) {
  const bool valid = *invalid == 0;
  write_mean(values, rows, rows, valid, information);
  if (valid) return;
  fill_with_nan(grad_rows, row_elements);
  fill_with_nan(grad_weight, weight_elements);
}

template <class T>
__global__ void __launch_bounds__(32 * kManyWarps)
    finish_statistics_kernel(const double* largest_shares /* (B,) */, int64_t pairs,
                             const double* column_sums /* (K,) */, int64_t clusters, const unsigned* invalid,
                             T* sums /* (K,) */, T* agreement /* (B,) */, T* largest) {
  const bool valid = *invalid == 0;
  write_mean(largest_shares, pairs, 2 * pairs, valid, largest);
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < clusters; k += threads) {
    sums[k] = valid ? static_cast<T>(column_sums[k]) : Limits<T>::kNan;
  }
  if (!valid) fill_with_nan(agreement, pairs);
}

}  // namespace deepclust::pairs

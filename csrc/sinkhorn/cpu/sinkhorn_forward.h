// Sinkhorn-Knopp forward: the kernel matrix and its scales, iteration by iteration, for problems of one size. Included
// after the kernels of sinkhorn_knopp.inl; sinkhorn_knopp.cpp explains the method.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "core/cpu/scratch.h"
#include "sinkhorn/cpu/sinkhorn_problem.h"

namespace deepclust {
namespace {

// v of one iteration may span this much, and a column sum of N terms may be this much smaller than N times the largest
// u; then all that vanishes in the kernel matrix and in products with it, below 1e-38 or 1e-308, is below the rounding
// of every sum.
template <typename T>
constexpr double kWidestSpan = sizeof(T) == 4 ? 1e12 : 1e100;
template <typename T>
constexpr double kVanishing = sizeof(T) == 4 ? 1e-20 : 1e-150;

// Memory for problems of one size, which it solves one after the other.
template <typename T>
class Solver {
 public:
  Solver(int64_t samples, int64_t clusters, double epsilon) : Solver(problem_of<T>(samples, clusters, epsilon)) {}

  // Writes the assignments and, if not null, the potentials; returns the iterations that it took.
  int64_t solve(const T* scores,          // (N, K)
                const T* sample_shares,   // (N,) or null
                const T* cluster_shares,  // (K,) or null
                int64_t num_iters, std::optional<double> tolerance,
                T* assignments,  // (N, K)
                T* potentials    // (num_iters, 2, N + K) or null
  ) {
    in_.scores = scores;
    in_.assignments = assignments;
    in_.kernel = matrix_size_ > 0 ? matrix_ : assignments;
    // Equal shares are those of the problem before.
    if (r_.empty() || sample_shares != nullptr) r_ = normalize_shares(sample_shares, in_.samples);
    if (c_.empty() || cluster_shares != nullptr) c_ = normalize_shares(cluster_shares, in_.clusters);
    const std::vector<T>&r = r_, &c = c_;
    in_.shares = r.data();
    if (r.empty() || c.empty() || !start(r, c)) {
      const T nan = std::numeric_limits<T>::quiet_NaN();
      std::fill(assignments, assignments + in_.samples * in_.clusters, nan);
      if (potentials != nullptr) std::fill(potentials, potentials + num_iters * 2 * potentials_, nan);
      return num_iters;
    }
    for (int64_t iteration = 0; iteration < num_iters; ++iteration) {
      if (iteration > 0 && tolerance && marginal_error(c) <= *tolerance) {
        chunks_.for_each(
            [&](int64_t, int64_t begin, int64_t end) { DEEPCLUST_SELECT(write_rows<T>)(in_, begin, end); });
        return iteration;
      }
      const bool is_last = iteration + 1 == num_iters;
      T* kept = potentials == nullptr ? nullptr : potentials + iteration * 2 * potentials_;
      // v_k = c_k / sum_n u_n kernel_nk
      scale_columns(c, iteration, kept == nullptr ? nullptr : kept + in_.samples);
      // u_n = r_n / sum_k v_k kernel_nk, and what the next v divides by, or in the end N P.
      chunks_.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
        T* sums = is_last ? nullptr : chunks_.fill(chunk, T(0));
        chunk_values_[chunk] = DEEPCLUST_SELECT(scale_rows<T>)(in_, begin, end, sample_values_, sums);
        for (int64_t n = begin; kept != nullptr && n < end; ++n) {
          keep(in_.row_shift[n] + gauge_ - std::log(static_cast<double>(sample_values_[n])), kept + n);
        }
        if (is_last) DEEPCLUST_SELECT(write_rows<T>)(in_, begin, end);
      });
      if (!is_last) chunks_.merge();
    }
    return num_iters;
  }

 private:
  explicit Solver(const SinkhornProblem<T>& problem)
      : chunks_(problem.samples, problem.clusters, problem.stride),
        last_block_size_(problem.clusters <= kFewClusters ? kMostLanes * problem.clusters : 0),
        matrix_size_(problem.clusters <= kFewClusters && problem.samples * problem.clusters <= kSmallMatrix
                         ? Scratch<T>::size_of(problem.samples * problem.clusters)
                         : 0),
        memory_(last_block_size_ + matrix_size_ + 4 * Scratch<T>::size_of(problem.samples) +
                3 * Scratch<T>::size_of(problem.stride) + Scratch<T>::size_of(chunks_.count())),
        in_{problem,
            nullptr,
            nullptr,
            memory_.take(last_block_size_),
            memory_.take(problem.samples),
            memory_.take(problem.stride),
            memory_.take(problem.samples),
            memory_.take(problem.stride),
            nullptr,
            false},
        matrix_(memory_.take(matrix_size_)),
        sample_values_(memory_.take(problem.samples)),
        sample_rests_(memory_.take(problem.samples)),
        peaks_(memory_.take(problem.stride)),
        chunk_values_(memory_.take(chunks_.count())),
        ratios_(problem.clusters),
        potentials_(problem.samples + problem.clusters) {}

  // A potential as the nearest T, and what is left of it one row further.
  void keep(double potential, T* kept) const {
    kept[0] = static_cast<T>(potential);
    kept[potentials_] = std::isfinite(potential) ? static_cast<T>(potential - kept[0]) : T(0);
  }

  // sum_k |v_k sum_n u_n kernel_nk - c_k|, of columns before they are scaled again.
  double marginal_error(const std::vector<T>& c) const {
    double error = 0;
    for (int64_t k = 0; k < in_.clusters; ++k) error += std::fabs(in_.v[k] * chunks_.sums()[k] - c[k]);
    return error;
  }

  // The kernel matrix, u = 1 and its column sums; false if a score is not finite.
  bool start(const std::vector<T>& r, const std::vector<T>& c) {
    const T infinity = std::numeric_limits<T>::infinity();
    std::fill(in_.column_shift, in_.column_shift + in_.stride, -infinity);
    std::fill(in_.v, in_.v + in_.stride, T(0));
    in_.is_shifted = false;
    for (int64_t k = 0; k < in_.clusters; ++k) {
      if (c[k] > 0) in_.column_shift[k] = T(0);
    }
    if (!build_and_start()) {
      if (!bound_scores<T>(in_, r, c, bounded_)) return false;
      build_and_start();  // which masks do not fit, but are 0 in
    }
    gauge_ = *std::max_element(chunk_values_, chunk_values_ + chunks_.count());
    chunks_.merge([&](int64_t chunk) { return std::exp(static_cast<double>(chunk_values_[chunk]) - gauge_); });
    std::fill(chunk_values_, chunk_values_ + chunks_.count(), T(1));  // the largest u
    return true;
  }

  // False if scores are not fit; what was built is of no use then, unless only masks are not.
  bool build_and_start() {
    std::atomic<bool> fit{true};
    chunks_.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
      if (!DEEPCLUST_SELECT(build_kernel<T>)(in_, begin, end)) fit = false;
      chunk_values_[chunk] = DEEPCLUST_SELECT(start_rows<T>)(in_, begin, end, chunks_.fill(chunk, T(0)));
    });
    return fit;
  }

  void scale_columns(const std::vector<T>& c, int64_t iteration, T* kept /* (K,) log(v / c), or null */) {
    const std::vector<double>& sums = chunks_.sums();
    // v, and whether anything that vanished could matter to it.
    const double vanishing =
        *std::max_element(chunk_values_, chunk_values_ + chunks_.count()) * kVanishing<T> * in_.samples;
    const double infinity = std::numeric_limits<double>::infinity();
    double smallest = infinity, largest = 0;
    bool vanishes = false;
    for (int64_t k = 0; k < in_.clusters; ++k) {
      ratios_[k] = c[k] / sums[k];
      if (c[k] == 0) continue;
      vanishes = vanishes || sums[k] < vanishing;
      smallest = std::min(smallest, ratios_[k]);
      largest = std::max(largest, ratios_[k]);
    }
    if (vanishes || largest > smallest * kWidestSpan<T>) {
      scale_columns_by_logarithms(c, iteration, kept);
      return;
    }
    // The potentials of the columns, and v with a largest element of 1.
    for (int64_t k = 0; kept != nullptr && k < in_.clusters; ++k) {
      keep(c[k] > 0 ? in_.column_shift[k] - gauge_ - std::log(sums[k]) : -infinity, kept + k);
    }
    const double factor = 1 / largest;
    for (int64_t k = 0; k < in_.clusters; ++k) in_.v[k] = static_cast<T>(c[k] > 0 ? ratios_[k] * factor : 0.0);
    gauge_ -= std::log(largest);
  }

  // The same from the scores, and the kernel matrix anew around that v, which is then about 1. Whole numbers are taken
  // apart from logarithms: these cancel without rounding, however large.
  void scale_columns_by_logarithms(const std::vector<T>& c, int64_t iteration, T* kept) {
    const T infinity = std::numeric_limits<T>::infinity();
    // log u, and the largest s / epsilon + log u of every column, nearly.
    T *f = sample_values_, *rest = sample_rests_;
    chunks_.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const double log_u = iteration == 0 ? -gauge_ : std::log(static_cast<double>(in_.u[n])) + in_.row_shift[n];
        f[n] = in_.shares[n] > 0 ? static_cast<T>(std::nearbyint(log_u)) : -infinity;
        rest[n] = static_cast<T>(log_u - f[n]);
      }
      DEEPCLUST_SELECT(find_largest<T>)(in_, f, begin, end, chunks_.fill(chunk, -infinity));
    });
    chunks_.merge_largest(peaks_);
    for (int64_t k = 0; k < in_.stride; ++k) peaks_[k] = std::nearbyint(peaks_[k]);
    // The sum of exponentials relative to it.
    chunks_.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
      DEEPCLUST_SELECT(add_exponentials<T>)(in_, f, rest, peaks_, begin, end, chunks_.fill(chunk, T(0)));
    });
    chunks_.merge();
    // log v, of which the columns of the kernel matrix are shifted by the whole number.
    for (int64_t k = 0; k < in_.clusters; ++k) {
      const double log_sum = std::log(chunks_.sums()[k]) + peaks_[k];
      if (kept != nullptr) keep(c[k] > 0 ? -log_sum - gauge_ : -infinity, kept + k);
      if (c[k] == 0) continue;
      const double log_v = std::log(static_cast<double>(c[k])) - log_sum;
      in_.column_shift[k] = static_cast<T>(std::nearbyint(log_v));
      in_.v[k] = static_cast<T>(std::exp(log_v - in_.column_shift[k]));
    }
    in_.is_shifted = true;
    chunks_.for_each([&](int64_t, int64_t begin, int64_t end) { DEEPCLUST_SELECT(build_kernel<T>)(in_, begin, end); });
  }

  RowChunks<T> chunks_;
  int64_t last_block_size_, matrix_size_;
  Scratch<T> memory_;
  SinkhornScaling<T> in_;
  T* matrix_;                   // (N, K) of a small problem with few clusters
  T* sample_values_;            // (N,) sums of rows times v, or log u as a whole number
  T* sample_rests_;             // (N,) what is left of log u
  T* peaks_;                    // (stride,)
  T* chunk_values_;             // (chunks,) the largest u of each; at the start its logarithm
  std::vector<T> r_, c_;        // shares of the problem at hand
  std::vector<double> ratios_;  // (K,) c / sums
  int64_t potentials_;          // of an iteration
  std::vector<T> bounded_;      // (N, K) scores, where those given are too large
  double gauge_ = 0;            // the logarithm by which u is too small, and v too large
};

}  // namespace
}  // namespace deepclust

// Sinkhorn-Knopp by scaling a kernel matrix, exactly equal to its logarithmic form.
//
// The kernel matrix exp(s_nk / epsilon + column_shift_k + row_shift_n) is computed once, with the row shifts that make
// the largest element of every row about 1; an iteration then reads it once: a row's sum gives its u, and while the row
// is in cache its share of the next column sums is added up. What the shifts take out, u and v put back, so the
// iterates are the same. Elements that vanish in such a matrix matter only to columns of which all elements nearly
// vanish, and after v has come to span many orders of magnitude. Both are seen in the column sums; then that step is
// done with logarithmic sums and the matrix is computed anew around the current v.
//
// Scores too large for such exponents, as masks are, are first moved by what v and u take up, column by column and row
// by row.
//
// The gradient goes back through the iterations from the potentials log u and log v of each: the derivative of every
// step is a softmax that they determine.
//
// Cost: an exponential for every element, and two multiply-adds for each iteration; the gradient takes two exponentials
// for each iteration. The matrix lies where the assignments are to be; with few clusters, and for the gradient, memory
// for one more is needed.
#include "sinkhorn/sinkhorn_knopp.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "core/cpu/scratch.h"
#include "core/dtypes.h"

namespace deepclust {
namespace {

constexpr int64_t kFewClusters = 64;            // up to which samples lie along the lanes of vectors
constexpr int64_t kColumnsInT = 1024;           // of a row, that are added up before the sum goes on in double
constexpr int64_t kParallelElements = 1 << 15;  // of a matrix, from which on threads share it
// The logarithm of what an element of the kernel matrix may be above 1. That much less than kVanishing of a column sum
// may be lost: exp(-87) is where exponentials vanish.
constexpr int kWindow = 20;
// Largest s / epsilon: its rounding is below 1 then, and exponentials of differences are still right to a factor.
template <typename T>
constexpr T kLargestLogit = sizeof(T) == 4 ? 0x1p22 : 0x1p50;
template <typename T>
constexpr T kOverflow = sizeof(T) == 4 ? 0x1p105 : 0x1p973;  // what makes anything larger overflow
constexpr int kMaskedLogits = 8;                             // kLargestLogit, below which nothing but masks is
constexpr double kLiftedLogit = 1024;  // so far below all others a row counts nothing at first: its exponentials vanish

// One problem; T is the accumulation type. Columns from `clusters` to `stride` are absent: their kernel is 0.
template <typename T>
struct SinkhornProblem {
  int64_t samples, clusters, stride;
  const T* scores;                          // (N, K)
  const T* shares;                          // (N,) of the samples
  T inverse_epsilon, inverse_epsilon_rest;  // whose sum is 1 / epsilon
  T* kernel;                                // (N, K) in place of the assignments, or with few clusters blocks
  T* row_shift;                             // (N,)
  T* column_shift;                          // (stride,) -inf where absent or of share 0
  T* u;                                     // (N,)
  T* v;                                     // (stride,)
  T* assignments;                           // (N, K)
};

// The gradient on its way back.
template <typename T>
struct SinkhornGradient {
  SinkhornProblem<T> problem;
  T* terms;       // (N, stride) the gradient by s / epsilon
  T* by_cluster;  // (stride,) by log v of the iteration at hand
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "sinkhorn/cpu/sinkhorn_knopp.inl"
#include "core/cpu/foreach_capability.h"

namespace deepclust {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// v of one iteration may span this much, and a column sum of N terms may be this much smaller than N times the largest
// u; then all that vanishes in the kernel matrix and in products with it is below the rounding of every sum.
template <typename T>
constexpr double kWidestSpan = sizeof(T) == 4 ? 1e12 : 1e100;
template <typename T>
constexpr double kVanishing = sizeof(T) == 4 ? 1e-20 : 1e-150;

// Shares that add up to 1, followed by zeros up to whole vectors; empty if they are no shares.
template <typename T>
std::vector<T> normalize_shares(const T* shares /* (count,) or null */, int64_t count) {
  std::vector<T> result(Scratch<T>::size_of(count));
  std::fill(result.begin(), result.begin() + count, static_cast<T>(1.0 / static_cast<double>(count)));
  if (shares == nullptr) return result;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!(shares[i] >= 0)) return {};
    sum += shares[i];
  }
  if (!(sum > 0 && sum <= std::numeric_limits<double>::max())) return {};
  for (int64_t i = 0; i < count; ++i) result[i] = static_cast<T>(shares[i] / sum);
  return result;
}

// Memory for problems of one size, which it solves one after the other.
template <typename T>
class Solver {
 public:
  Solver(int64_t samples, int64_t clusters, double epsilon, bool is_backward)
      : samples_(samples),
        clusters_(clusters),
        stride_(DEEPCLUST_SELECT(padded_columns<T>)(clusters)),
        chunk_rows_(clusters > kFewClusters ? 64 : 512),
        chunks_((samples + chunk_rows_ - 1) / chunk_rows_),
        matrix_size_(is_backward || clusters <= kFewClusters ? Scratch<T>::size_of(samples) * stride_ : 0),
        memory_(matrix_size_ + 3 * Scratch<T>::size_of(samples) + 4 * Scratch<T>::size_of(stride_) +
                Scratch<T>::size_of(chunks_ * stride_) + Scratch<T>::size_of(chunks_)),
        sums_(clusters),
        ratios_(clusters),
        epsilon_(epsilon) {
    in_ = {.samples = samples,
           .clusters = clusters,
           .stride = stride_,
           .scores = nullptr,
           .shares = nullptr,
           .inverse_epsilon = T(0),
           .inverse_epsilon_rest = T(0),
           .kernel = memory_.take(matrix_size_),
           .row_shift = memory_.take(samples),
           .column_shift = memory_.take(stride_),
           .u = memory_.take(samples),
           .v = memory_.take(stride_),
           .assignments = nullptr};
    sample_values_ = memory_.take(samples);
    peaks_ = memory_.take(stride_);
    cluster_values_ = memory_.take(stride_);
    partial_ = memory_.take(chunks_ * stride_);
    chunk_values_ = memory_.take(chunks_);
  }

  // Writes the assignments and, if not null, the potentials; returns the iterations that it took.
  int64_t solve(const T* scores,          // (N, K)
                const T* sample_shares,   // (N,) or null
                const T* cluster_shares,  // (K,) or null
                int64_t num_iters, std::optional<double> tolerance,
                T* assignments,  // (N, K)
                T* potentials    // (num_iters, N + K) or null
  ) {
    set_scores(scores);
    in_.assignments = assignments;
    if (clusters_ > kFewClusters) in_.kernel = assignments;
    const std::vector<T> r = normalize_shares(sample_shares, samples_), c = normalize_shares(cluster_shares, clusters_);
    in_.shares = r.data();
    if (r.empty() || c.empty() || !start(r, c)) {
      const T nan = std::numeric_limits<T>::quiet_NaN();
      std::fill(assignments, assignments + samples_ * clusters_, nan);
      if (potentials != nullptr) std::fill(potentials, potentials + num_iters * (samples_ + clusters_), nan);
      return num_iters;
    }
    for (int64_t iteration = 0; iteration < num_iters; ++iteration) {
      if (iteration > 0 && tolerance) {
        double error = 0;
        for (int64_t k = 0; k < clusters_; ++k) error += std::fabs(in_.v[k] * sums_[k] - c[k]);
        if (error <= *tolerance) {
          for_chunks([&](int64_t, int64_t begin, int64_t end) { DEEPCLUST_SELECT(write_rows<T>)(in_, begin, end); });
          return iteration;
        }
      }
      const bool is_last = iteration + 1 == num_iters;
      T* kept = potentials == nullptr ? nullptr : potentials + iteration * (samples_ + clusters_);
      scale_columns(c, iteration, kept == nullptr ? nullptr : kept + samples_);
      for_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
        T* sums = is_last ? nullptr : clear_chunk(chunk);
        chunk_values_[chunk] = DEEPCLUST_SELECT(scale_rows<T>)(in_, begin, end, sample_values_, sums);
        for (int64_t n = begin; kept != nullptr && n < end; ++n) {
          kept[n] = static_cast<T>(in_.row_shift[n] + gauge_ - std::log(static_cast<double>(sample_values_[n])));
        }
        if (is_last) DEEPCLUST_SELECT(write_rows<T>)(in_, begin, end);
      });
      if (!is_last) merge_sums(0);
    }
    return num_iters;
  }

  // Writes the gradient with respect to the scores.
  void gradient(const T* scores,          // (N, K)
                const T* grad,            // (N, K)
                const T* sample_shares,   // (N,) or null
                const T* cluster_shares,  // (K,) or null
                int64_t used,
                const T* potentials,  // (num_iters, N + K)
                T* grad_scores        // (N, K)
  ) {
    const std::vector<T> r = normalize_shares(sample_shares, samples_), c = normalize_shares(cluster_shares, clusters_);
    if (r.empty() || c.empty() || std::isnan(potentials[0])) {
      std::fill(grad_scores, grad_scores + samples_ * clusters_, std::numeric_limits<T>::quiet_NaN());
      return;
    }
    set_scores(scores);
    std::atomic<bool> fit{true};
    for_chunks([&](int64_t, int64_t begin, int64_t end) {
      if (!DEEPCLUST_SELECT(is_fit<T>)(in_, begin, end)) fit = false;
    });
    if (!fit) bound_scores(r, c);
    const SinkhornGradient<T> back{in_, in_.kernel, in_.v};
    T *f = sample_values_, *g = cluster_values_, *g_before = peaks_;
    const T infinity = std::numeric_limits<T>::infinity();
    std::fill(g, g + stride_, -infinity);
    std::fill(g_before, g_before + stride_, -infinity);
    std::fill(in_.v, in_.v + stride_, T(0));
    const auto row_of = [&](int64_t iteration) { return potentials + iteration * (samples_ + clusters_); };
    const auto set_columns = [&](int64_t iteration, bool with_shares, T* target) {
      for (int64_t k = 0; k < clusters_; ++k) {
        target[k] = row_of(iteration)[samples_ + k] + (with_shares ? std::log(c[k]) : T(0));
      }
    };
    const auto set_rows = [&](int64_t iteration) {  // log u, at first 1
      for (int64_t n = 0; n < samples_; ++n) {
        f[n] = iteration >= 0 ? row_of(iteration)[n] + std::log(r[n]) : r[n] > 0 ? T(0) : -infinity;
      }
    };
    set_columns(used - 1, true, g);
    set_rows(used - 1);
    for_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
      DEEPCLUST_SELECT(start_gradient<T>)(back, grad, f, g, begin, end, clear_chunk(chunk));
    });
    for (int64_t iteration = used - 1; iteration >= 0; --iteration) {
      merge_sums(0);
      for (int64_t k = 0; k < clusters_; ++k) in_.v[k] = static_cast<T>(sums_[k]);
      const bool is_first = iteration == 0;
      set_columns(iteration, false, g);
      set_rows(iteration - 1);
      if (!is_first) set_columns(iteration - 1, true, g_before);
      for_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
        DEEPCLUST_SELECT(gradient_through_iteration<T>)(back, f, g, is_first ? nullptr : row_of(iteration - 1),
                                                        g_before, begin, end, is_first ? nullptr : clear_chunk(chunk));
        for (int64_t n = begin; is_first && n < end; ++n) {
          const T* terms = in_.kernel + n * stride_;
          for (int64_t k = 0; k < clusters_; ++k) grad_scores[n * clusters_ + k] = terms[k] * in_.inverse_epsilon;
        }
      });
    }
  }

 private:
  // Calls use(chunk, begin, end) for all chunks of rows, in turn from the first and from the last of every thread: what
  // a pass read last is in cache for the next one.
  template <typename Use>
  void for_chunks(const Use& use) {
    const int64_t grain = std::max<int64_t>(1, kParallelElements / (chunk_rows_ * stride_));
    at::parallel_for(0, chunks_, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t chunk = from_last_ ? first + last - 1 - i : i;
        use(chunk, chunk * chunk_rows_, std::min((chunk + 1) * chunk_rows_, samples_));
      }
    });
    from_last_ = !from_last_;
  }

  T* clear_chunk(int64_t chunk) {
    std::fill(partial_ + chunk * stride_, partial_ + (chunk + 1) * stride_, T(0));
    return partial_ + chunk * stride_;
  }

  // Column sums of all chunks; `scale` of each is exp(chunk_values - gauge) if `by_gauge`.
  void merge_sums(int by_gauge) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const double scale = by_gauge ? std::exp(static_cast<double>(chunk_values_[chunk]) - gauge_) : 1.0;
      for (int64_t k = 0; k < clusters_; ++k) sums_[k] += scale * partial_[chunk * stride_ + k];
    }
  }

  void set_scores(const T* scores) {
    in_.scores = scores;
    const double inverse = std::min(1 / epsilon_, static_cast<double>(std::numeric_limits<T>::max()));
    in_.inverse_epsilon = static_cast<T>(inverse);
    in_.inverse_epsilon_rest = static_cast<T>(inverse - static_cast<double>(in_.inverse_epsilon));
  }

  // Where s / epsilon is too large: takes scores that are not, and that have the same assignments. A column whose
  // largest score is far from 0 counts from that, which v takes up. A row far below all columns' largest is lifted
  // close to them, which u takes up: at first it counts nothing before and after. What remains far below is masked.
  // False if a score is not finite.
  bool bound_scores(const std::vector<T>& r, const std::vector<T>& c) {
    const T lowest = std::numeric_limits<T>::lowest(), limit = kLargestLogit<T> / in_.inverse_epsilon;
    std::vector<T> tops(clusters_, lowest);
    for (int64_t n = 0; n < samples_; ++n) {
      for (int64_t k = 0; k < clusters_; ++k) {
        const T score = in_.scores[n * clusters_ + k];
        if (!std::isfinite(score)) return false;
        if (r[n] > 0) tops[k] = std::max(tops[k], score);
      }
    }
    std::vector<T> centers(clusters_, T(0));
    T floor = limit;
    for (int64_t k = 0; k < clusters_; ++k) {
      if (std::fabs(tops[k]) > limit) centers[k] = tops[k];
      if (c[k] > 0) floor = std::min(floor, tops[k] - centers[k]);
    }
    floor -= static_cast<T>(kLiftedLogit / in_.inverse_epsilon);
    bounded_.resize(samples_ * clusters_);
    for (int64_t n = 0; n < samples_; ++n) {
      const T* scores = in_.scores + n * clusters_;
      T* bounded = bounded_.data() + n * clusters_;
      T largest = lowest;
      for (int64_t k = 0; k < clusters_; ++k) {
        bounded[k] = std::clamp(scores[k] - centers[k], lowest, limit);  // above it is but a row of share 0
        if (c[k] > 0) largest = std::max(largest, bounded[k]);
      }
      for (int64_t k = 0; k < clusters_; ++k) {
        if (largest < floor) bounded[k] = bounded[k] - largest + floor;
        bounded[k] = std::clamp(bounded[k], -kMaskedLogits * limit, limit);
      }
    }
    in_.scores = bounded_.data();
    return true;
  }

  bool start(const std::vector<T>& r, const std::vector<T>& c) {
    const T infinity = std::numeric_limits<T>::infinity();
    std::fill(in_.column_shift, in_.column_shift + stride_, -infinity);
    std::fill(in_.v, in_.v + stride_, T(0));
    for (int64_t k = 0; k < clusters_; ++k) {
      if (c[k] > 0) in_.column_shift[k] = T(0);
    }
    if (!build_and_start()) {
      if (!bound_scores(r, c)) return false;
      build_and_start();  // which masks do not fit, but are 0 in
    }
    gauge_ = *std::max_element(chunk_values_, chunk_values_ + chunks_);
    merge_sums(1);
    std::fill(chunk_values_, chunk_values_ + chunks_, T(1));  // the largest u
    return true;
  }

  // False if scores are not fit; what was built is of no use then, unless only masks are not.
  bool build_and_start() {
    std::atomic<bool> fit{true};
    for_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
      if (!DEEPCLUST_SELECT(build_kernel<T>)(in_, begin, end)) fit = false;
      chunk_values_[chunk] = DEEPCLUST_SELECT(start_rows<T>)(in_, begin, end, clear_chunk(chunk));
    });
    return fit;
  }

  void scale_columns(const std::vector<T>& c, int64_t iteration, T* kept /* (K,) log(v / c), or null */) {
    const double vanishing = *std::max_element(chunk_values_, chunk_values_ + chunks_) * kVanishing<T> * samples_;
    const T nothing = -std::numeric_limits<T>::infinity();
    double smallest = std::numeric_limits<double>::infinity(), largest = 0;
    bool vanishes = false;
    for (int64_t k = 0; k < clusters_; ++k) {
      ratios_[k] = c[k] / sums_[k];
      if (c[k] == 0) continue;
      vanishes = vanishes || sums_[k] < vanishing;
      smallest = std::min(smallest, ratios_[k]);
      largest = std::max(largest, ratios_[k]);
    }
    if (vanishes || largest > smallest * kWidestSpan<T>) {
      scale_columns_by_logarithms(c, iteration, kept);
      return;
    }
    for (int64_t k = 0; kept != nullptr && k < clusters_; ++k) {
      kept[k] = c[k] > 0 ? static_cast<T>(in_.column_shift[k] - gauge_ - std::log(sums_[k])) : nothing;
    }
    const double factor = 1 / largest;
    for (int64_t k = 0; k < clusters_; ++k) in_.v[k] = static_cast<T>(c[k] > 0 ? ratios_[k] * factor : 0.0);
    gauge_ -= std::log(largest);
  }

  void scale_columns_by_logarithms(const std::vector<T>& c, int64_t iteration, T* kept) {
    const T infinity = std::numeric_limits<T>::infinity();
    T* f = sample_values_;
    for (int64_t n = 0; n < samples_; ++n) {
      const T log_u = iteration == 0 ? static_cast<T>(-gauge_) : std::log(in_.u[n]) + in_.row_shift[n];
      f[n] = in_.shares[n] > 0 ? log_u : -infinity;
    }
    for_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
      std::fill(partial_ + chunk * stride_, partial_ + (chunk + 1) * stride_, -infinity);
      DEEPCLUST_SELECT(find_largest<T>)(in_, f, begin, end, partial_ + chunk * stride_);
    });
    std::copy(partial_, partial_ + stride_, peaks_);
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      for (int64_t k = 0; k < stride_; ++k) peaks_[k] = std::max(peaks_[k], partial_[chunk * stride_ + k]);
    }
    for_chunks([&](int64_t chunk, int64_t begin, int64_t end) {
      DEEPCLUST_SELECT(add_exponentials<T>)(in_, f, peaks_, begin, end, clear_chunk(chunk));
    });
    merge_sums(0);
    for (int64_t k = 0; k < clusters_; ++k) {
      if (kept != nullptr) kept[k] = -infinity;
      if (c[k] == 0) continue;
      const double log_sum = std::log(sums_[k]) + peaks_[k];
      if (kept != nullptr) kept[k] = static_cast<T>(-log_sum - gauge_);
      in_.column_shift[k] = static_cast<T>(std::log(c[k]) - log_sum);
      in_.v[k] = T(1);
    }
    for_chunks([&](int64_t, int64_t begin, int64_t end) { DEEPCLUST_SELECT(build_kernel<T>)(in_, begin, end); });
  }

  int64_t samples_, clusters_, stride_;
  int64_t chunk_rows_, chunks_;  // rows whose column sums are added up apart, whatever the number of threads
  int64_t matrix_size_;
  Scratch<T> memory_;
  SinkhornProblem<T> in_;
  T* sample_values_;            // (N,)
  T* peaks_;                    // (stride,)
  T* cluster_values_;           // (stride,)
  T* partial_;                  // (chunks, stride)
  T* chunk_values_;             // (chunks,)
  std::vector<double> sums_;    // (K,)
  std::vector<double> ratios_;  // (K,) c / sums
  double epsilon_;
  std::vector<T> bounded_;  // (N, K) scores, where those given are too large
  double gauge_ = 0;        // the logarithm by which u is too small, and v too large
  bool from_last_ = false;
};

// Calls solve(solver, problem) for every problem: threads share the problems if these are small, else every problem.
template <typename T, typename Solve>
void for_each_problem(int64_t problems, int64_t samples, int64_t clusters, double epsilon, bool is_backward,
                      const Solve& solve) {
  const bool is_large = samples * clusters > kParallelElements && problems < 2 * at::get_num_threads();
  const auto run = [&](int64_t begin, int64_t end) {
    Solver<T> solver(samples, clusters, epsilon, is_backward);
    for (int64_t problem = begin; problem < end; ++problem) solve(solver, problem);
  };
  if (is_large) {
    run(0, problems);
  } else {
    at::parallel_for(0, problems, std::max<int64_t>(1, kParallelElements / (samples * clusters)), run);
  }
}

// Shares in the accumulation type, and from one problem's to the next's.
template <typename T>
struct Shares {
  at::Tensor tensor;
  const T* values = nullptr;
  int64_t step = 0;

  Shares(const OptionalTensor& shares, at::ScalarType dtype) {
    if (!shares) return;
    tensor = shares->to(dtype).contiguous();
    values = tensor.template const_data_ptr<T>();
    step = shares->dim() > 1 ? shares->size(-1) : 0;
  }
  const T* of(int64_t problem) const { return values == nullptr ? nullptr : values + problem * step; }
};

template <typename T>
SinkhornKnoppOutputs assignments_of(const at::Tensor& scores_input, double epsilon, int64_t num_iters,
                                    const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                                    std::optional<double> tolerance, bool differentiable) {
  const at::Tensor scores = to_accumulation(scores_input);
  const int64_t samples = scores.size(-2), clusters = scores.size(-1);
  const auto batch = scores.sizes().slice(0, scores.dim() - 2);
  const int64_t problems = std::accumulate(batch.begin(), batch.end(), int64_t{1}, std::multiplies<int64_t>());
  const at::Tensor assignments = at::empty(scores.sizes(), scores.options());
  const at::Tensor used = at::empty(batch, scores.options().dtype(at::kLong));
  std::vector<int64_t> kept(batch.begin(), batch.end());
  kept.insert(kept.end(), {num_iters, samples + clusters});
  if (!differentiable) kept = {0};
  const at::Tensor potentials = at::empty(kept, scores.options());
  if (scores.numel() == 0) {
    used.fill_(num_iters);
    potentials.zero_();
    return {to_dtype(assignments, scores_input.scalar_type()), used, potentials};
  }
  const Shares<T> r(sample_marginals, scores.scalar_type()), c(cluster_marginals, scores.scalar_type());
  const T* values = scores.const_data_ptr<T>();
  T* target = assignments.mutable_data_ptr<T>();
  T* keep = potentials.mutable_data_ptr<T>();
  int64_t* count = used.mutable_data_ptr<int64_t>();
  for_each_problem<T>(problems, samples, clusters, epsilon, false, [&](Solver<T>& solver, int64_t i) {
    const int64_t offset = i * samples * clusters;
    count[i] = solver.solve(values + offset, r.of(i), c.of(i), num_iters, tolerance, target + offset,
                            differentiable ? keep + i * num_iters * (samples + clusters) : nullptr);
  });
  return {to_dtype(assignments, scores_input.scalar_type()), used, potentials};
}

SinkhornKnoppOutputs sinkhorn_knopp_cpu(const at::Tensor& scores,  // (..., N, K)
                                        double epsilon, int64_t num_iters,
                                        const OptionalTensor& sample_marginals,   // (N,) or (..., N)
                                        const OptionalTensor& cluster_marginals,  // (K,) or (..., K)
                                        std::optional<double> tolerance, bool differentiable) {
  check_sinkhorn_knopp(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance);
  const auto run = scores.scalar_type() == at::kDouble ? assignments_of<double> : assignments_of<float>;
  return run(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, differentiable);
}

template <typename T>
at::Tensor gradient_of(const at::Tensor& grad_assignments, const at::Tensor& scores_input, const at::Tensor& used,
                       const at::Tensor& potentials, double epsilon, const OptionalTensor& sample_marginals,
                       const OptionalTensor& cluster_marginals) {
  const at::Tensor scores = to_accumulation(scores_input), grad = to_accumulation(grad_assignments);
  const at::Tensor grad_scores = at::empty(scores.sizes(), scores.options());
  if (scores.numel() == 0) return to_dtype(grad_scores, scores_input.scalar_type());
  const int64_t samples = scores.size(-2), clusters = scores.size(-1), num_iters = potentials.size(-2);
  const Shares<T> r(sample_marginals, scores.scalar_type()), c(cluster_marginals, scores.scalar_type());
  const at::Tensor counts = used.contiguous(), kept = potentials.contiguous();
  for_each_problem<T>(counts.numel(), samples, clusters, epsilon, true, [&](Solver<T>& solver, int64_t i) {
    const int64_t offset = i * samples * clusters;
    solver.gradient(scores.const_data_ptr<T>() + offset, grad.const_data_ptr<T>() + offset, r.of(i), c.of(i),
                    counts.const_data_ptr<int64_t>()[i],
                    kept.const_data_ptr<T>() + i * num_iters * (samples + clusters),
                    grad_scores.mutable_data_ptr<T>() + offset);
  });
  return to_dtype(grad_scores, scores_input.scalar_type());
}

at::Tensor sinkhorn_knopp_backward_cpu(const at::Tensor& grad_assignments,      // (..., N, K)
                                       const at::Tensor& scores,                // (..., N, K)
                                       const at::Tensor& used,                  // (...) int64
                                       const at::Tensor& potentials,            // (..., num_iters, N + K)
                                       double epsilon,                          //
                                       const OptionalTensor& sample_marginals,  // (N,) or (..., N)
                                       const OptionalTensor& cluster_marginals  // (K,) or (..., K)
) {
  const auto run = scores.scalar_type() == at::kDouble ? gradient_of<double> : gradient_of<float>;
  return run(grad_assignments, scores, used, potentials, epsilon, sample_marginals, cluster_marginals);
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("sinkhorn_knopp", sinkhorn_knopp_cpu);
  m.impl("sinkhorn_knopp_backward", sinkhorn_knopp_backward_cpu);
}

}  // namespace deepclust

// Sinkhorn-Knopp backward: the gradient of the unrolled iterations from the potentials of each, for problems of one
// size. Included after the kernels of sinkhorn_knopp.inl; sinkhorn_knopp.cpp explains the method.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/cpu/scratch.h"
#include "sinkhorn/cpu/sinkhorn_problem.h"

namespace deepclust {
namespace {

// Up to this size a potential of float32 is exact enough as one number. Larger ones are read as a whole number and a
// rest.
constexpr double kNearPotential = 256;

// Memory for problems of one size, whose gradients it computes one after the other.
template <typename T>
class GradientSolver {
 public:
  GradientSolver(int64_t samples, int64_t clusters, double epsilon)
      : in_(problem_of<T>(samples, clusters, epsilon)),
        chunks_(samples, clusters, in_.stride),
        memory_(Scratch<T>::size_of(samples * in_.stride) + 4 * Scratch<T>::size_of(samples) +
                5 * Scratch<T>::size_of(in_.stride)),
        terms_(memory_.take(samples * in_.stride)),
        f_(take(samples)),
        f_before_(take(samples)),
        g_(take(in_.stride)),
        g_before_(take(in_.stride)),
        by_cluster_(memory_.take(in_.stride)) {}

  // Writes the gradient with respect to the scores. Each half of an iteration is a softmax of s / epsilon plus a
  // potential, so its gradient follows from the scores and the potentials that forward has kept. The iterations are
  // undone from the last to the first; terms_ collects the gradient by s / epsilon, and its sums over columns are the
  // gradient by log v.
  void gradient(const T* scores,          // (N, K)
                const T* grad,            // (N, K)
                const T* sample_shares,   // (N,) or null
                const T* cluster_shares,  // (K,) or null
                int64_t used,
                const T* potentials,  // (num_iters, 2, N + K) log(u / r), log(v / c)
                T* grad_scores        // (N, K)
  ) {
    const int64_t samples = in_.samples, clusters = in_.clusters, stride = in_.stride;
    const T infinity = std::numeric_limits<T>::infinity();
    const std::vector<T> r = normalize_shares(sample_shares, samples), c = normalize_shares(cluster_shares, clusters);
    if (r.empty() || c.empty() || std::isnan(potentials[0])) {
      std::fill(grad_scores, grad_scores + samples * clusters, std::numeric_limits<T>::quiet_NaN());
      return;
    }

    // Step 1: the scores that the potentials belong to. Scores too large for exponents are replaced as forward did.
    in_.scores = scores;
    std::atomic<bool> fit{true};
    chunks_.for_each([&](int64_t, int64_t begin, int64_t end) {
      if (!DEEPCLUST_SELECT(is_fit<T>)(in_, begin, end)) fit = false;
    });
    if (!fit) bound_scores(in_, r, c, bounded_);
    const SinkhornGradient<T> back{in_, terms_, by_cluster_};
    std::fill(by_cluster_, by_cluster_ + stride, T(0));
    for (const Pair* columns : {&g_, &g_before_}) {
      std::fill(columns->value, columns->value + stride, -infinity);
      std::fill(columns->rest, columns->rest + stride, T(0));
    }
    const auto row_of = [&](int64_t iteration) { return potentials + iteration * 2 * (samples + clusters); };
    bool is_near = true;
    for (int64_t iteration = 0; iteration < used; ++iteration) {
      const T* row = row_of(iteration);
      is_near = is_near && std::all_of(row, row + samples + clusters,
                                       [&](T x) { return std::fabs(x) <= kNearPotential || x == -infinity; });
    }
    // Step 2: how potentials are read. Forward has kept log(u / r) and log(v / c), each as a number and a rest. If all
    // are near 0, the number alone is used. With `shares` the logarithm of r or c is added, which gives log u or log v.
    const auto set = [&](const Pair& target, const T* kept, int64_t count, const T* shares) {
      for (int64_t i = 0; i < count; ++i) {
        if (is_near) {
          target.value[i] = shares == nullptr ? kept[i] : kept[i] + std::log(shares[i]);
          continue;
        }
        double value = static_cast<double>(kept[i]) + kept[i + samples + clusters];
        if (shares != nullptr) value += std::log(static_cast<double>(shares[i]));
        target.value[i] = static_cast<T>(std::nearbyint(value));
        target.rest[i] = std::isfinite(value) ? static_cast<T>(value - target.value[i]) : T(0);
      }
    };
    const auto set_columns = [&](int64_t iteration, bool with_shares, const Pair& target) {  // log v or log(v / c)
      set(target, row_of(iteration) + samples, clusters, with_shares ? c.data() : nullptr);
    };
    const auto set_rows = [&](int64_t iteration, bool with_shares, const Pair& target) {  // log u or log(u / r)
      if (iteration >= 0) {
        set(target, row_of(iteration), samples, with_shares ? r.data() : nullptr);
        return;
      }
      // Before the first iteration u is 1, or 0 for a sample without a share.
      for (int64_t n = 0; n < samples; ++n) target.value[n] = r[n] > 0 ? T(0) : -infinity;
      std::fill(target.rest, target.rest + samples, T(0));
    };
    const auto view = [&](const Pair& pair) { return SinkhornPotential<T>{pair.value, is_near ? nullptr : pair.rest}; };

    // Step 3: through the result N P and the last u, which together are a softmax of each row. Its gradient is
    // N P_nk (grad_nk - mean of grad over the row, weighted by P).
    set_columns(used - 1, true, g_);
    set_rows(used - 1, true, f_);
    chunks_.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
      DEEPCLUST_SELECT(start_gradient<T>)(back, grad, view(f_), view(g_), begin, end, chunks_.fill(chunk, T(0)));
    });
    for (int64_t iteration = used - 1; iteration >= 0; --iteration) {
      // Step 4: the gradient by log v_k is the sum of all terms of column k so far.
      chunks_.merge();
      for (int64_t k = 0; k < clusters; ++k) by_cluster_[k] = static_cast<T>(chunks_.sums()[k]);

      // Step 5: the potentials of this iteration. It has computed v_k = c_k / sum_n u_n exp(s_nk / epsilon) from the u
      // of the iteration before, and that u_n = r_n / sum_k v_k exp(s_nk / epsilon) from the v before. So log(v / c) is
      // needed of this v, log u and log(u / r) of the u before, and log v of the v before.
      const bool is_first = iteration == 0;
      set_columns(iteration, false, g_);
      set_rows(iteration - 1, true, f_);
      if (!is_first) {
        set_columns(iteration - 1, true, g_before_);
        set_rows(iteration - 1, false, f_before_);
      }

      // Step 6: through this v and the u before it. After the first v, which came from u = 1, the terms are complete:
      // over epsilon they are the gradient.
      chunks_.for_each([&](int64_t chunk, int64_t begin, int64_t end) {
        DEEPCLUST_SELECT(gradient_through_iteration<T>)(back, view(f_), view(g_), view(f_before_), view(g_before_),
                                                        begin, end, is_first ? nullptr : chunks_.fill(chunk, T(0)));
        for (int64_t n = begin; is_first && n < end; ++n) {
          const T* terms = terms_ + n * stride;
          for (int64_t k = 0; k < clusters; ++k) grad_scores[n * clusters + k] = terms[k] * in_.inverse_epsilon;
        }
      });
    }
  }

 private:
  // Memory of a SinkhornPotential.
  struct Pair {
    T *value, *rest;
  };
  Pair take(int64_t count) {
    T* value = memory_.take(count);
    return {value, memory_.take(count)};
  }

  SinkhornProblem<T> in_;
  RowChunks<T> chunks_;
  Scratch<T> memory_;
  T* terms_;                // (N, stride) the gradient by s / epsilon so far
  Pair f_, f_before_;       // (N,) log u and log(u / r) of the iteration before
  Pair g_, g_before_;       // (stride,) log v or log(v / c) of the iteration at hand, log v of the one before
  T* by_cluster_;           // (stride,) the gradient by log v
  std::vector<T> bounded_;  // (N, K) scores that replace the given ones if these are too large
};

}  // namespace
}  // namespace deepclust

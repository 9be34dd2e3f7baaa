// The gradient through the iterations, last one first. No include guard: compiled once per capability, by
// sinkhorn_knopp.inl.
namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// exp(s_nk / epsilon + f_n + g_k), of which `shift` is g_k.
template <bool kHasRest, typename T>
DEEPCLUST_INLINE Vec<T> share_of(const SinkhornProblem<T>& in, const Vec<T>& score, const Vec<T>& shift,
                                 const SinkhornPotential<T>& f, const SinkhornPotential<T>& g, int64_t n, int64_t k) {
  Vec<T> exponent = exponent_of<T>(in, score, shift + f.value[n]);
  if constexpr (kHasRest) exponent += load(g.rest + k) + f.rest[n];
  return exponential<T>(exponent);
}

// The gradient by s / epsilon as far as the last u: terms = N P (grad - their mean over the row, weighted by P), rows
// [begin, end), and their sums over columns. f is log u and g log v. By the mean: the row's sum is fixed, and what is
// equal in all its elements has no effect.
template <bool kHasRest, typename T>
DEEPCLUST_INLINE void start_gradient_by(const SinkhornGradient<T>& in, const T* grad /* (N, K) */,
                                        const SinkhornPotential<T>& f, const SinkhornPotential<T>& g, int64_t begin,
                                        int64_t end, T* column_sums /* (stride,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const SinkhornProblem<T> problem = in.problem;
  for (int64_t n = begin; n < end; ++n) {
    T* terms = in.terms + n * problem.stride;
    const T* grads = grad + n * problem.clusters;
    const auto grad_at = [&](int64_t k) __attribute__((always_inline)) {
      if (k + kLanes <= problem.clusters) return load(grads + k);
      T rest[kLanes] = {};
      for (int64_t lane = 0; k + lane < problem.clusters; ++lane) rest[lane] = grads[k + lane];
      return load(rest);
    };
    Vec<T> sum = {}, weighted = {};
    for_each_column(problem.scores + n * problem.clusters, g.value, problem.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      const Vec<T> share = share_of<kHasRest>(problem, score, shift, f, g, n, k);
                      store(terms + k, share);
                      sum += share;
                      weighted += share * grad_at(k);
                    });
    const T total = sum_lanes<T>(sum);
    const T mean = total > T(0) ? sum_lanes<T>(weighted) / total : T(0);
    for (int64_t k = 0; k < problem.stride; k += kLanes) {
      const Vec<T> term = load(terms + k) * (grad_at(k) - mean) * static_cast<T>(problem.samples);
      store(terms + k, term);
      store(column_sums + k, load(column_sums + k) + term);
    }
  }
}

template <typename T>
void start_gradient(const SinkhornGradient<T>& in, const T* grad, const SinkhornPotential<T>& f,
                    const SinkhornPotential<T>& g, int64_t begin, int64_t end, T* column_sums) {
  const auto run = f.rest == nullptr ? start_gradient_by<false, T> : start_gradient_by<true, T>;
  run(in, grad, f, g, begin, end, column_sums);
}

// Through v_k = c_k / sum_n u_n exp(s_nk / epsilon), rows [begin, end), where f is log u and g log(v / c), and through
// the u_n = r_n / sum_k v_k exp(s_nk / epsilon) of the iteration before, where f is log(u / r) and g log v: a row of
// the one is all that the other needs of it. Only through v if column_sums is null.
template <bool kHasRest, typename T>
DEEPCLUST_INLINE void gradient_through_iteration_by(const SinkhornGradient<T>& in, const SinkhornPotential<T>& f,
                                                    const SinkhornPotential<T>& g, const SinkhornPotential<T>& f_before,
                                                    const SinkhornPotential<T>& g_before, int64_t begin, int64_t end,
                                                    T* column_sums /* (stride,) or null */) {
  const SinkhornProblem<T> problem = in.problem;
  for (int64_t n = begin; n < end; ++n) {
    const T* scores = problem.scores + n * problem.clusters;
    T* terms = in.terms + n * problem.stride;
    Vec<T> sum = {};
    for_each_column(scores, g.value, problem.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      const Vec<T> part =
                          share_of<kHasRest>(problem, score, shift, f, g, n, k) * load(in.by_cluster + k);
                      store(terms + k, load(terms + k) - part);
                      sum -= part;
                    });
    if (column_sums == nullptr) continue;
    const T by_sample = sum_lanes<T>(sum);
    for_each_column(scores, g_before.value, problem.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      const Vec<T> part =
                          share_of<kHasRest>(problem, score, shift, f_before, g_before, n, k) * by_sample;
                      store(terms + k, load(terms + k) - part);
                      store(column_sums + k, load(column_sums + k) - part);
                    });
  }
}

template <typename T>
void gradient_through_iteration(const SinkhornGradient<T>& in, const SinkhornPotential<T>& f,
                                const SinkhornPotential<T>& g, const SinkhornPotential<T>& f_before,
                                const SinkhornPotential<T>& g_before, int64_t begin, int64_t end, T* column_sums) {
  const auto run = f.rest == nullptr ? gradient_through_iteration_by<false, T> : gradient_through_iteration_by<true, T>;
  run(in, f, g, f_before, g_before, begin, end, column_sums);
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

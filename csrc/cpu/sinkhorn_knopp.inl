// Kernels of Sinkhorn-Knopp for one capability; driven by sinkhorn_knopp.cpp, which explains the method.
// No include guard: compiled once per capability.

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Calls use(k, score, shift) with vectors of a row, the last one filled up with absent columns: score 0, shift -inf.
template <typename T, typename Use>
DEEPCLUST_INLINE void for_each_column(const T* scores /* (clusters,) */, const T* shift /* (stride,) */,
                                      int64_t clusters, const Use& use) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= clusters; k += kLanes) use(k, load(scores + k), load(shift + k));
  if (k < clusters) {
    T rest[kLanes] = {};
    for (int64_t lane = 0; k + lane < clusters; ++lane) rest[lane] = scores[k + lane];
    use(k, load(rest), load(shift + k));
  }
}

template <typename T>
DEEPCLUST_INLINE Vec<T> exponent_of(const SinkhornProblem<T>& in, const Vec<T>& score, const Vec<T>& shift) {
  return score * in.inverse_epsilon + (score * in.inverse_epsilon_rest + shift);
}

// The largest score / epsilon + shift of a row; NaN if a score is not finite.
template <typename T>
T largest_exponent(const SinkhornProblem<T>& in, const T* scores /* (K,) */, const T* shift /* (stride,) */) {
  Vec<T> largest = broadcast(-std::numeric_limits<T>::infinity());
  Vec<T> unfit = {};
  for_each_column(scores, shift, in.clusters,
                  [&](int64_t, const Vec<T>& score, const Vec<T>& more) __attribute__((always_inline)) {
                    const Vec<T> exponent = exponent_of<T>(in, score, more);
                    largest = exponent > largest ? exponent : largest;
                    unfit += score * T(0);
                  });
  return sum_lanes<T>(unfit) == T(0) ? max_lanes<T>(largest) : std::numeric_limits<T>::quiet_NaN();
}

// Rows [begin, end) of the kernel matrix exp(s / epsilon + column_shift + row_shift), with the row shift that makes
// their largest element 1; false if a score is not finite.
template <typename T>
bool build_kernel(const SinkhornProblem<T>& in, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const T* scores = in.scores + n * in.clusters;
    T* row = in.kernel + n * in.stride;
    const T largest = largest_exponent(in, scores, in.column_shift);
    if (!(largest >= -std::numeric_limits<T>::max() && largest <= std::numeric_limits<T>::max())) return false;
    in.row_shift[n] = -largest;
    for_each_column(scores, in.column_shift, in.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      store(row + k, exponential<T>(exponent_of<T>(in, score, shift - largest)));
                    });
  }
  return true;
}

// sums += sum over rows [begin, end) of u_n times the row of the kernel matrix.
template <typename T>
void add_rows(const SinkhornProblem<T>& in, int64_t begin, int64_t end, T* sums /* (stride,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  for (int64_t n = begin; n < end; ++n) {
    const T* row = in.kernel + n * in.stride;
    const T u = in.u[n];
    for (int64_t k = 0; k < in.stride; k += kLanes) store(sums + k, load(sums + k) + load(row + k) * u);
  }
}

// Scales rows [begin, end): u_n = r_n / sum_k v_k kernel_nk, and notes the logarithm of the sum where asked.
template <typename T>
void scale_rows(const SinkhornProblem<T>& in, int64_t begin, int64_t end, T* row_sum /* (N,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kRows = 4;  // share a pass over v
  for (int64_t n = begin; n < end; n += kRows) {
    const int64_t count = end - n < kRows ? end - n : kRows;
    const T* row[kRows];
    for (int64_t r = 0; r < kRows; ++r) row[r] = in.kernel + (r < count ? n + r : n) * in.stride;
    Vec<T> sum[kRows] = {};
    for (int64_t k = 0; k < in.stride; k += kLanes) {
      const Vec<T> v = load(in.v + k);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kRows; ++r) sum[r] += v * load(row[r] + k);
    }
    for (int64_t r = 0; r < count; ++r) {
      row_sum[n + r] = sum_lanes<T>(sum[r]);
      in.u[n + r] = in.sample_share(n + r) / row_sum[n + r];
    }
  }
}

// Writes rows [begin, end) of the assignments, N u_n v_k kernel_nk.
template <typename T>
void write_rows(const SinkhornProblem<T>& in, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  for (int64_t n = begin; n < end; ++n) {
    const T* row = in.kernel + n * in.stride;
    T* target = in.assignments + n * in.clusters;
    const T scale = in.u[n] * static_cast<T>(in.samples);
    int64_t k = 0;
    for (; k + kLanes <= in.clusters; k += kLanes) store(target + k, load(row + k) * load(in.v + k) * scale);
    for (; k < in.clusters; ++k) target[k] = row[k] * in.v[k] * scale;
  }
}

// For every column the largest s / epsilon + f_n over rows [begin, end).
template <typename T>
void find_largest(const SinkhornProblem<T>& in, const T* f /* (N,) */, int64_t begin, int64_t end,
                  T* largest /* (stride,) */) {
  for (int64_t n = begin; n < end; ++n) {
    for_each_column(in.scores + n * in.clusters, in.column_shift, in.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>&) __attribute__((always_inline)) {
                      const Vec<T> exponent = exponent_of<T>(in, score, broadcast(f[n]));
                      const Vec<T> before = load(largest + k);
                      store(largest + k, exponent > before ? exponent : before);
                    });
  }
}

// sums[k] += sum over rows [begin, end) of exp(s_nk / epsilon + f_n - largest_k).
template <typename T>
void add_exponentials(const SinkhornProblem<T>& in, const T* f /* (N,) */, const T* largest /* (stride,) */,
                      int64_t begin, int64_t end, T* sums /* (stride,) */) {
  for (int64_t n = begin; n < end; ++n) {
    if (f[n] == -std::numeric_limits<T>::infinity()) continue;
    for_each_column(in.scores + n * in.clusters, largest, in.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& peak) __attribute__((always_inline)) {
                      store(sums + k, load(sums + k) + exponential<T>(exponent_of<T>(in, score, f[n] - peak)));
                    });
  }
}

// The gradient of the result itself, rows [begin, end): terms = grad * N P, its sum over the row, and over columns.
template <typename T>
void start_gradient(const SinkhornGradient<T>& in, const T* grad /* (N, K) */, const T* f, const T* g, int64_t begin,
                    int64_t end, T* column_sums /* (stride,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const auto& problem = in.problem;
  for (int64_t n = begin; n < end; ++n) {
    T* terms = in.terms + n * problem.stride;
    const T* grads = grad + n * problem.clusters;
    const T scale = static_cast<T>(problem.samples);
    Vec<T> sum = {};
    for_each_column(problem.scores + n * problem.clusters, g, problem.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      T own[kLanes] = {};
                      for (int64_t lane = 0; lane < kLanes && k + lane < problem.clusters; ++lane) {
                        own[lane] = grads[k + lane];
                      }
                      const Vec<T> term =
                          load(own) * scale * exponential<T>(exponent_of<T>(problem, score, shift + f[n]));
                      store(terms + k, term);
                      sum += term;
                      store(column_sums + k, load(column_sums + k) + term);
                    });
    in.by_sample[n] = sum_lanes<T>(sum);
  }
}

// Through u_n = r_n / sum_k v_k exp(s_nk / epsilon), rows [begin, end): f is log(u / r) and g log v.
template <typename T>
void gradient_through_rows(const SinkhornGradient<T>& in, const T* f, const T* g, int64_t begin, int64_t end,
                           T* column_sums /* (stride,) */) {
  const auto& problem = in.problem;
  for (int64_t n = begin; n < end; ++n) {
    T* terms = in.terms + n * problem.stride;
    for_each_column(problem.scores + n * problem.clusters, g, problem.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      const Vec<T> part =
                          exponential<T>(exponent_of<T>(problem, score, shift + f[n])) * in.by_sample[n];
                      store(terms + k, load(terms + k) - part);
                      store(column_sums + k, load(column_sums + k) - part);
                    });
  }
}

// Through v_k = c_k / sum_n u_n exp(s_nk / epsilon), rows [begin, end): f is log u and g log(v / c).
template <typename T>
void gradient_through_columns(const SinkhornGradient<T>& in, const T* f, const T* g, int64_t begin, int64_t end) {
  const auto& problem = in.problem;
  for (int64_t n = begin; n < end; ++n) {
    T* terms = in.terms + n * problem.stride;
    Vec<T> sum = {};
    for_each_column(problem.scores + n * problem.clusters, g, problem.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      const Vec<T> part =
                          exponential<T>(exponent_of<T>(problem, score, shift + f[n])) * load(in.by_cluster + k);
                      store(terms + k, load(terms + k) - part);
                      sum -= part;
                    });
    in.by_sample[n] = sum_lanes<T>(sum);
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

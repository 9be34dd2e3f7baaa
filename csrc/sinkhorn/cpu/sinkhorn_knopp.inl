// Kernels of Sinkhorn-Knopp for one capability; driven by sinkhorn_knopp.cpp, which explains the method.
// No include guard: compiled once per capability.
#include "core/cpu/tile_core.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Columns rounded up to whole vectors.
template <typename T>
int64_t padded_columns(int64_t clusters) {
  return round_up(clusters, VecOf<T>::kLanes);
}

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

// Whether the compiler joins a product and a sum into one rounding: x86 has no such instruction before AVX2, and the
// sanitizer builds are not optimized enough.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kJoinsProducts = false;
#else
constexpr bool kJoinsProducts = !(DEEPCLUST_X86 && kVectorBytes == 16);
#endif

// s / epsilon + shift. The shift comes first: it leaves little, beside which the rest of 1 / epsilon is not lost.
template <typename T>
DEEPCLUST_INLINE Vec<T> exponent_of(const SinkhornProblem<T>& in, const Vec<T>& score, const Vec<T>& shift) {
  if constexpr (!kJoinsProducts && sizeof(T) == 4) {  // far from zero the product's rounding would be all that is left
    typedef double Wide __attribute__((vector_size(2 * DEEPCLUST_VECTOR_BYTES)));
    const double inverse = static_cast<double>(in.inverse_epsilon) + static_cast<double>(in.inverse_epsilon_rest);
    return __builtin_convertvector(
        __builtin_convertvector(score, Wide) * inverse + __builtin_convertvector(shift, Wide), Vec<T>);
  } else {
    return (score * in.inverse_epsilon + shift) + score * in.inverse_epsilon_rest;
  }
}

template <typename T>
DEEPCLUST_INLINE Vec<T> exponential_of(const SinkhornProblem<T>& in, const Vec<T>& score, const Vec<T>& shift) {
  return exponential<T>(exponent_of<T>(in, score, shift));
}

// Keeps the largest absolute values of scores. As integers they have the same order, with Inf and NaN above all, and
// cost the units for multiplication nothing.
template <typename T>
DEEPCLUST_INLINE void keep_magnitude(const Vec<T>& score, Mask<T>& largest) {
  const Mask<T> magnitude = reinterpret_cast<Mask<T>>(score) & std::numeric_limits<typename IntegerOf<T>::type>::max();
  largest = magnitude > largest ? magnitude : largest;
}

// Whether s / epsilon is not too large for the largest absolute values that were kept.
template <typename T>
DEEPCLUST_INLINE bool are_fit(const SinkhornProblem<T>& in, const Mask<T>& largest) {
  const Vec<T> unfit = reinterpret_cast<Vec<T>>(largest) * in.inverse_epsilon * kOverflow<T> * T(0);  // 0 or NaN
  return sum_lanes<T>(unfit) == T(0);
}

// Lane r is combine() over the lanes of values[r].
template <typename T, typename Combine>
DEEPCLUST_INLINE Vec<T> fold_each(Vec<T> (&values)[VecOf<T>::kLanes], const Combine& combine) {
  transpose<T>(values);
#pragma GCC unroll 4
  for (int64_t half = VecOf<T>::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < half; ++i) values[i] = combine(values[i], values[i + half]);
  }
  return values[0];
}

// Whether all scores of rows [begin, end) are fit.
template <typename T>
bool is_fit(const SinkhornProblem<T>& in, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  Mask<T> magnitude = {};
  int64_t i = begin * in.clusters;
  for (; i + kLanes <= end * in.clusters; i += kLanes) keep_magnitude<T>(load(in.scores + i), magnitude);
  for (; i < end * in.clusters; ++i) keep_magnitude<T>(broadcast(in.scores[i]), magnitude);
  return are_fit<T>(in, magnitude);
}

// For every column the largest s / epsilon + f_n over rows [begin, end).
template <typename T>
void find_largest(const SinkhornScaling<T>& in, const T* f /* (N,) */, int64_t begin, int64_t end,
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

// sums[k] += sum over rows [begin, end) of exp(s_nk / epsilon + f_n - largest_k + rest_n).
template <typename T>
void add_exponentials(const SinkhornProblem<T>& in, const T* f /* (N,) */, const T* rest /* (N,) */,
                      const T* largest /* (stride,) */, int64_t begin, int64_t end, T* sums /* (stride,) */) {
  for (int64_t n = begin; n < end; ++n) {
    if (f[n] == -std::numeric_limits<T>::infinity()) continue;
    for_each_column(in.scores + n * in.clusters, largest, in.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& peak) __attribute__((always_inline)) {
                      const Vec<T> exponent = exponent_of<T>(in, score, f[n] - peak) + rest[n];
                      store(sums + k, load(sums + k) + exponential<T>(exponent));
                    });
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

#include "sinkhorn/cpu/sinkhorn_by_cluster.inl"
#include "sinkhorn/cpu/sinkhorn_gradient.inl"

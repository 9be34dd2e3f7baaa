// The vector type of the capability being compiled, and row arithmetic on it. No include guard: once per capability.
//
// Sums over a row always run over the same lanes and fold in the same order, whatever the vector width, so AVX2 and
// AVX-512 machines give the same bits.

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

#define DEEPCLUST_INLINE inline __attribute__((always_inline))

constexpr int64_t kVectorBytes = DEEPCLUST_VECTOR_BYTES;

template <typename T>
struct VecOf {
  typedef T type __attribute__((vector_size(DEEPCLUST_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(DEEPCLUST_VECTOR_BYTES), aligned(alignof(T)), may_alias));
  static constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));
};
template <typename T>
using Vec = typename VecOf<T>::type;

template <typename T>
DEEPCLUST_INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(from);
}

template <typename T>
DEEPCLUST_INLINE void store(T* to, const Vec<T>& value) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(to) = value;
}

template <typename T>
DEEPCLUST_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

template <typename T>
struct IntegerOf;  // the lanes that a comparison of Vec<T> gives: 0 or -1
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <typename T>
using Mask = Vec<typename IntegerOf<T>::type>;

// combine() over the lanes of a vector, halves first.
template <int64_t kWidth, typename V, typename Combine, int64_t... kLane>
DEEPCLUST_INLINE auto fold(V value, const Combine& combine, std::integer_sequence<int64_t, kLane...> lanes) {
  if constexpr (kWidth == 1) {
    return value[0];
  } else {
    const V upper = __builtin_shufflevector(value, value, ((kLane + kWidth / 2) % sizeof...(kLane))...);
    return fold<kWidth / 2>(combine(value, upper), combine, lanes);
  }
}

template <typename T>
DEEPCLUST_INLINE T sum_lanes(Vec<T> value) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  return fold<kLanes>(
      value, [](Vec<T> a, Vec<T> b) __attribute__((always_inline)) { return a + b; },
      std::make_integer_sequence<int64_t, kLanes>());
}

template <typename T>
DEEPCLUST_INLINE T max_lanes(Vec<T> value) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  return fold<kLanes>(
      value, [](Vec<T> a, Vec<T> b) __attribute__((always_inline)) { return a > b ? a : b; },
      std::make_integer_sequence<int64_t, kLanes>());
}

// Whether any lane of a comparison is true.
template <typename T>
DEEPCLUST_INLINE bool any_lane(Mask<T> mask) {
  constexpr int64_t kWords = kVectorBytes / 8;
  return fold<kWords>(
             reinterpret_cast<Vec<int64_t>>(mask),
             [](Vec<int64_t> a, Vec<int64_t> b) __attribute__((always_inline)) { return a | b; },
             std::make_integer_sequence<int64_t, kWords>()) != 0;
}

// Sum of term(k) over k < depth; `vector_term` gives it for the lanes from k on, `scalar_term` for one k.
template <typename T, typename VectorTerm, typename ScalarTerm>
DEEPCLUST_INLINE T sum_terms(int64_t depth, const VectorTerm& vector_term, const ScalarTerm& scalar_term) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kStep = 256 / static_cast<int64_t>(sizeof(T));  // enough sums side by side to hide their latency
  constexpr int64_t kVectors = kStep / kLanes;
  Vec<T> partial[kVectors] = {};
  int64_t k = 0;
  for (; k + kStep <= depth; k += kStep) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < kVectors; ++v) partial[v] += vector_term(k + v * kLanes);
  }
  if (k < depth) {
    T rest[kStep] = {};
    for (int64_t lane = 0; k < depth; ++k, ++lane) rest[lane] = scalar_term(k);
#pragma GCC unroll 16
    for (int64_t v = 0; v < kVectors; ++v) partial[v] += load(rest + v * kLanes);
  }
#pragma GCC unroll 4
  for (int64_t half = kVectors / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < half; ++v) partial[v] += partial[v + half];
  }
  return sum_lanes<T>(partial[0]);
}

template <typename T>
T squared_distance(const T* x /* (depth,) */, const T* y /* (depth,) */, int64_t depth) {
  return sum_terms<T>(
      depth,
      [&](int64_t k) __attribute__((always_inline)) {
        const Vec<T> difference = load(x + k) - load(y + k);
        return difference * difference;
      },
      [&](int64_t k) __attribute__((always_inline)) { return (x[k] - y[k]) * (x[k] - y[k]); });
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

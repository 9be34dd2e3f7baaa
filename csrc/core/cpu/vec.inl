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

template <typename T, int64_t... kLane>
DEEPCLUST_INLINE uint32_t lane_bits(Mask<T> mask, std::integer_sequence<int64_t, kLane...> lanes) {
  const Mask<T> bit = {(1 << kLane)...};
  return static_cast<uint32_t>(fold<sizeof...(kLane)>(
      mask & bit, [](Mask<T> a, Mask<T> b) __attribute__((always_inline)) { return a | b; }, lanes));
}

// The lanes of a comparison that are true, the first in the lowest bit.
template <typename T>
DEEPCLUST_INLINE uint32_t lane_bits(Mask<T> mask) {
  return lane_bits<T>(mask, std::make_integer_sequence<int64_t, VecOf<T>::kLanes>());
}

// Adds vectors i and i + kHalf for all i below, then with half of that, until all are in the first.
template <int64_t kHalf, typename T, size_t kVectors>
DEEPCLUST_INLINE void add_halves(Vec<T> (&values)[kVectors]) {
  if constexpr (kHalf > 0) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < kHalf; ++v) values[v] += values[v + kHalf];
    add_halves<kHalf / 2, T>(values);
  }
}

// Sum of term(k) over k < depth; `vector_term` gives it for the lanes from k on, `scalar_term` for one k.
template <typename T, typename VectorTerm, typename ScalarTerm>
DEEPCLUST_INLINE T sum_terms(int64_t depth, const VectorTerm& vector_term, const ScalarTerm& scalar_term) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kStep = 256 / static_cast<int64_t>(sizeof(T));  // enough sums side by side to hide their latency
  constexpr int64_t kVectors = kStep / kLanes;
  Vec<T> partial[kVectors];
#pragma GCC unroll 16
  for (int64_t v = 0; v < kVectors; ++v) partial[v] = Vec<T>{};
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
  add_halves<kVectors / 2, T>(partial);  // whatever is no constant here would leave all sums in memory
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

template <typename T>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr float kMinimum = -87.3f;
  static constexpr float kLn2High = 0x1.62ep-1f, kLn2Low = 0x1.0bfbe8p-15f;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  static constexpr int kDegree = 7, kMantissaBits = 23;
};
template <>
struct Exponential<double> {
  static constexpr double kMinimum = -708.3;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kDegree = 13, kMantissaBits = 52;
};
constexpr double kInverseFactorial[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

// exp(x) for x <= 88, to about one unit in the last place; 0 below kMinimum, where the result would not be normal. x
// must not be NaN.
template <typename T>
DEEPCLUST_INLINE Vec<T> exponential(const Vec<T>& x) {
  using E = Exponential<T>;
  const Vec<T> shifted = x * T(1.4426950408889634) + E::kRound;
  const Vec<T> power = shifted - E::kRound;  // x = power ln 2 + rest, |rest| <= ln 2 / 2
  const Vec<T> rest = (x - power * E::kLn2High) - power * E::kLn2Low;
  Vec<T> sum = broadcast(T(kInverseFactorial[E::kDegree]));
#pragma GCC unroll 16
  for (int k = E::kDegree - 1; k >= 0; --k) sum = sum * rest + T(kInverseFactorial[k]);
  const Mask<T> exponent = reinterpret_cast<Mask<T>>(shifted) << E::kMantissaBits;
  const Vec<T> value = reinterpret_cast<Vec<T>>(reinterpret_cast<Mask<T>>(sum) + exponent);
  return x < E::kMinimum ? Vec<T>{} : value;
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

// Row arithmetic of diffused_neighbor_gather. No include guard: compiled once per capability.
#include "core/cpu/rows.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Words below 2^32, in lanes of 64 bits, as float64: put in the mantissa of 2^52, which is then taken away.
DEEPCLUST_INLINE Vec<double> words_to_double(const Vec<uint64_t>& words) {
  return reinterpret_cast<Vec<double>>(words | uint64_t{0x4330000000000000}) - 0x1p52;
}

// log(x) for normal x > 0, to about a rounding.
DEEPCLUST_INLINE Vec<double> logarithm(const Vec<double>& x) {
  // x = 2^power y with y in [sqrt(1/2), sqrt(2)), and log y = 2 artanh((y - 1) / (y + 1)).
  const auto bits = reinterpret_cast<Vec<uint64_t>>(x) + (uint64_t{0x3FF0000000000000} - uint64_t{0x3FE6A09E667F3BCD});
  const Vec<double> power = words_to_double(bits >> 52) - 1023.0;
  const Vec<double> y =
      reinterpret_cast<Vec<double>>((bits & uint64_t{0x000FFFFFFFFFFFFF}) + uint64_t{0x3FE6A09E667F3BCD});
  const Vec<double> ratio = (y - 1.0) / (y + 1.0);
  // artanh(r) / r = 1 + r^2 sum, of least error for |r| < 0.1716: 2^-58 (FreeBSD's e_log.c, halved).
  constexpr double kCoefficients[] = {0x1.5555555555593p-2, 0x1.999999997fa04p-3, 0x1.2492494229359p-3,
                                      0x1.c71c51d8e78afp-4, 0x1.7466496cb03dep-4, 0x1.39a09d078c69fp-4,
                                      0x1.2f112df3e5244p-4};
  const Vec<double> square = ratio * ratio;
  Vec<double> sum = broadcast(kCoefficients[6]);
#pragma GCC unroll 8
  for (int k = 5; k >= 0; --k) sum = sum * square + kCoefficients[k];
  return power * 0x1.62e42fefa39efp-1 + (sum * square * ratio + ratio) * 2.0;
}

// The square root of x >= 0, by the instruction: std::sqrt may set errno, so that no compiler makes vectors of it.
DEEPCLUST_INLINE Vec<double> square_root(const Vec<double>& x) {
#if DEEPCLUST_X86 && DEEPCLUST_VECTOR_BYTES == 64
  return _mm512_maskz_sqrt_pd(0xFF, x);  // of all lanes: GCC 12 warns of the plain one
#elif DEEPCLUST_X86 && DEEPCLUST_VECTOR_BYTES == 32
  return _mm256_sqrt_pd(x);
#else
  Vec<double> root;
  for (int64_t lane = 0; lane < VecOf<double>::kLanes; ++lane) root[lane] = std::sqrt(x[lane]);
  return root;
#endif
}

// The lanes of two vectors in turn: of their lower halves, or of their upper ones.
template <bool kUpper, int64_t... kLane>
DEEPCLUST_INLINE Vec<double> interleave(const Vec<double>& x, const Vec<double>& y,
                                        std::integer_sequence<int64_t, kLane...> /*lanes*/) {
  constexpr int64_t kLanes = sizeof...(kLane);
  return __builtin_shufflevector(x, y, (kLane % 2 * kLanes + kLane / 2 + kUpper * kLanes / 2)...);
}

// Writes x[0], y[0], z[0], w[0], x[1], ... of four vectors.
DEEPCLUST_INLINE void store_interleaved(double* to, const Vec<double> (&from)[4]) {
  constexpr int64_t kLanes = VecOf<double>::kLanes;
  constexpr auto kSequence = std::make_integer_sequence<int64_t, kLanes>();
  const Vec<double> lower[2] = {interleave<false>(from[0], from[2], kSequence),
                                interleave<false>(from[1], from[3], kSequence)};
  const Vec<double> upper[2] = {interleave<true>(from[0], from[2], kSequence),
                                interleave<true>(from[1], from[3], kSequence)};
  store(to, interleave<false>(lower[0], lower[1], kSequence));
  store(to + kLanes, interleave<true>(lower[0], lower[1], kSequence));
  store(to + 2 * kLanes, interleave<false>(upper[0], upper[1], kSequence));
  store(to + 3 * kLanes, interleave<true>(upper[0], upper[1], kSequence));
}

// Two normal numbers of two words, in every lane; see philox.h.
DEEPCLUST_INLINE void normal_pair(const Vec<uint64_t>& first, const Vec<uint64_t>& second, Vec<double>& x,
                                  Vec<double>& y) {
  const Vec<double> radius = square_root(logarithm((words_to_double(first) + 0.5) * 0x1p-32) * -2.0);
  const Vec<uint64_t> turned = second + kHalfQuarter;
  const Vec<uint64_t> rest = turned & uint64_t{(1 << 30) - 1};
  Vec<double> sine, cosine;
  sine_and_cosine<double>(Vec<double>((words_to_double(rest) - double(kHalfQuarter)) * kRestToRadians), sine, cosine);
  // A quarter turn makes (cosine, sine) into (-sine, cosine); bits 30 and 31 count the quarters.
  const auto swapped = (turned & (uint64_t{1} << 30)) != 0;
  const Vec<double> along = swapped ? sine : cosine, across = swapped ? cosine : sine;
  const auto minus_x = ((turned + (uint64_t{1} << 30)) & (uint64_t{1} << 31)) << 32;
  const auto minus_y = (turned & (uint64_t{1} << 31)) << 32;
  x = reinterpret_cast<Vec<double>>(reinterpret_cast<Vec<uint64_t>>(Vec<double>(along * radius)) ^ minus_x);
  y = reinterpret_cast<Vec<double>>(reinterpret_cast<Vec<uint64_t>>(Vec<double>(across * radius)) ^ minus_y);
}

// sample = source + deviation * noise; element d takes number d % 4 of counter d / 4.
template <typename T>
void add_noise(const T* source,  // (depth,)
               T* sample,        // (depth,) may be the source
               int64_t depth, double deviation, uint64_t seed, int64_t query, int64_t number) {
  constexpr int64_t kLanes = VecOf<uint64_t>::kLanes;
  Vec<uint64_t> counter;
  for (int64_t lane = 0; lane < kLanes; ++lane) counter[lane] = lane;
  for (int64_t first = 0; first < depth; first += 4 * kLanes, counter += uint64_t(kLanes)) {
    Vec<uint64_t> words[4] = {counter, broadcast(uint64_t(number)), broadcast(uint64_t(query) & 0xFFFFFFFF),
                              broadcast(uint64_t(query) >> 32 | kNoiseCounter)};
    philox(words, seed);
    Vec<double> normal[4];
    normal_pair(words[0], words[1], normal[0], normal[1]);
    normal_pair(words[2], words[3], normal[2], normal[3]);
    double noise[4 * kLanes];
    store_interleaved(noise, normal);
    if (first + 4 * kLanes <= depth) {
      for (int64_t k = 0; k < 4 * kLanes; ++k)
        sample[first + k] = static_cast<T>(source[first + k] + deviation * noise[k]);
    } else {
      for (int64_t k = 0; first + k < depth; ++k)
        sample[first + k] = static_cast<T>(source[first + k] + deviation * noise[k]);
    }
  }
}

template <typename T>
T dot_product(const T* x /* (depth,) */, const T* y /* (depth,) */, int64_t depth) {
  return sum_terms<T>(
      depth, [&](int64_t k) __attribute__((always_inline)) { return load(x + k) * load(y + k); },
      [&](int64_t k) __attribute__((always_inline)) { return x[k] * y[k]; });
}

// The cosine of two rows that neither overflow nor vanish when squared.
template <typename T>
T cosine_of(const T* x /* (depth,) */, const T* y /* (depth,) */, int64_t depth) {
  const T norms = std::max(std::sqrt(dot_product(x, x, depth)), T(kMinNorm)) *
                  std::max(std::sqrt(dot_product(y, y, depth)), T(kMinNorm));
  return dot_product(x, y, depth) / norms;
}

// sum += (gradient - along * direction) * scale
template <typename T>
void add_projected(T* sum,             // (depth,)
                   const T* gradient,  // (depth,)
                   const T* direction, T along, T scale, int64_t depth) {
  int64_t k = 0;
  for (; k + VecOf<T>::kLanes <= depth; k += VecOf<T>::kLanes) {
    store(sum + k, load(sum + k) + (load(gradient + k) - load(direction + k) * along) * scale);
  }
  for (; k < depth; ++k) sum[k] += (gradient[k] - direction[k] * along) * scale;
}

template <typename T>
void add_row(T* sum /* (depth,) */, const T* row /* (depth,) */, int64_t depth) {
  int64_t k = 0;
  for (; k + VecOf<T>::kLanes <= depth; k += VecOf<T>::kLanes) store(sum + k, load(sum + k) + load(row + k));
  for (; k < depth; ++k) sum[k] += row[k];
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

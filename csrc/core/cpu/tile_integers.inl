// Rows as 16-bit integers: half the bytes of float32 and products at twice its rate, with an error that is known.
//
//     x_k = s (q_k + e_k),   s = |x| / kIntegerNorm,   |e_k| hardly above 1/2
//
// By Cauchy and Schwarz a sum of products of two rows stays below 2^31, and what it says of x.y is off by no more than
// integer_error(depth) |x| |y|. Both hold for any rows, so that a decision with that margin is certain.
//
// A row is a lane of the vectors, with two neighboring elements in its 32 bits, the first in the low half. Columns of a
// panel are as many as those of float32 in tile_core.inl. No include guard: compiled once per capability; immintrin.h
// stands before it on x86.

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

constexpr float kIntegerNorm = 32000;

inline int64_t integer_columns() { return Tile<float>::kPanelColumns; }

inline float integer_error(int64_t depth) {
  const float relative = 0.505f * std::sqrt(static_cast<float>(depth)) / kIntegerNorm;
  return relative * (2 + relative);
}

// sum over the two elements of each lane of x times those of y
DEEPCLUST_INLINE Vec<int32_t> multiply_pairs(const Vec<int32_t>& x, const Vec<int32_t>& y) {
#if DEEPCLUST_X86 && DEEPCLUST_VECTOR_BYTES == 64
  return (Vec<int32_t>)_mm512_madd_epi16((__m512i)x, (__m512i)y);
#elif DEEPCLUST_X86 && DEEPCLUST_VECTOR_BYTES == 32
  return (Vec<int32_t>)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#elif DEEPCLUST_X86
  return (Vec<int32_t>)_mm_madd_epi16((__m128i)x, (__m128i)y);
#else
  return ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}

// The lanes of a comparison that are true, the first in the lowest bit.
DEEPCLUST_INLINE uint32_t true_lanes(const Mask<float>& mask) {
#if DEEPCLUST_X86 && DEEPCLUST_VECTOR_BYTES == 64
  return _mm512_movepi32_mask((__m512i)mask);
#elif DEEPCLUST_X86 && DEEPCLUST_VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)mask);
#elif DEEPCLUST_X86
  return _mm_movemask_ps((__m128)mask);
#else
  return lane_bits<float>(mask);
#endif
}

// Rounds a panel that pack_columns has packed, and finds the norms of its rows. `integers` may be the panel itself. A
// norm that is not finite comes with integers that mean nothing.
inline void round_panel(const float* panel,         // (depth, kPanelColumns)
                        const float* squared_norm,  // (kPanelColumns,)
                        int64_t depth,
                        int32_t* integers,  // (depth / 2 rounded up, kPanelColumns)
                        float* norm         // (kPanelColumns,)
) {
  constexpr int64_t kLanes = VecOf<float>::kLanes, kColumns = Tile<float>::kPanelColumns;
  const Vec<float> kRound = broadcast(0x1.8p23f);  // adding it leaves the nearest integer in the low bits
  float scales[kColumns];
  for (int64_t c = 0; c < kColumns; ++c) {
    norm[c] = std::sqrt(squared_norm[c]);
    scales[c] = norm[c] > 0 ? kIntegerNorm / norm[c] : 0.0f;
  }
  for (int64_t begin = 0; begin < kColumns; begin += kLanes) {
    const Vec<float> scale = load(scales + begin);
    const auto rounded = [&](int64_t k) __attribute__((always_inline)) {
      return reinterpret_cast<Vec<int32_t>>(load(panel + k * kColumns + begin) * scale + kRound);
    };
    for (int64_t k = 0; k + 1 < depth; k += 2) {
      store(integers + k / 2 * kColumns + begin, (rounded(k) & 0xffff) | rounded(k + 1) << 16);
    }
    if (depth % 2 != 0) store(integers + depth / 2 * kColumns + begin, rounded(depth - 1) & 0xffff);
  }
}

// The low halves of the lanes of `first`, then those of `second`, two in a lane.
template <int64_t... kLane>
DEEPCLUST_INLINE Vec<int32_t> pack_low_halves(const Vec<int32_t>& first, const Vec<int32_t>& second,
                                              std::integer_sequence<int64_t, kLane...>) {
  typedef int16_t Halves __attribute__((vector_size(DEEPCLUST_VECTOR_BYTES)));
  return (Vec<int32_t>)__builtin_shufflevector((Halves)first, (Halves)second, (2 * kLane)...);
}

// Rounds a row, times `scale`, to integers, two neighboring ones in 32 bits.
inline void round_row(const float* row, float scale, int64_t depth, int32_t* integers /* (depth / 2 rounded up,) */) {
  constexpr int64_t kLanes = VecOf<float>::kLanes;
  const Vec<float> kRound = broadcast(0x1.8p23f);
  const auto rounded = [&](Vec<float> values) __attribute__((always_inline)) {
    return reinterpret_cast<Vec<int32_t>>(values * scale + kRound);
  };
  int64_t k = 0;
  for (; k + 2 * kLanes <= depth; k += 2 * kLanes) {
    const Vec<int32_t> low = rounded(load(row + k)), high = rounded(load(row + k + kLanes));
    store(integers + k / 2, pack_low_halves(low, high, std::make_integer_sequence<int64_t, 2 * kLanes>()));
  }
  for (; k < depth; k += 2) {
    const float pair[kLanes] = {row[k], k + 1 < depth ? row[k + 1] : 0};
    const Vec<int32_t> two = rounded(load(pair));
    integers[k / 2] = static_cast<int32_t>((two[0] & 0xffffu) | static_cast<uint32_t>(two[1]) << 16);
  }
}

// sum[r] += rows[r] * columns over the pairs, for kRows rows and the two vectors of a panel. Meanwhile kBytes for each
// pair come nearer from `next` on, which may lie behind the last of all: a processor does not foresee many short rows,
// nor what begins with a page.
template <int64_t kRows, int64_t kBytes>
DEEPCLUST_INLINE void multiply_integer_tile(const int32_t* rows,   // (kRows, pairs)
                                            const int32_t* panel,  // (pairs, kPanelColumns)
                                            int64_t pairs, const void* next, Vec<int32_t> (&sum)[kRows][2]) {
  constexpr int64_t kLanes = VecOf<int32_t>::kLanes, kCacheLine = 64;
#pragma GCC unroll 4
  for (int64_t p = 0; p < pairs; ++p) {
    const Vec<int32_t> low = load(panel + p * 2 * kLanes), high = load(panel + p * 2 * kLanes + kLanes);
#pragma GCC unroll 4
    for (int64_t byte = 0; byte < kBytes; byte += kCacheLine) {
      __builtin_prefetch(static_cast<const char*>(next) + p * kBytes + byte);
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRows; ++r) {
      const Vec<int32_t> pair = rows[r * pairs + p] - Vec<int32_t>{};
      sum[r][0] += multiply_pairs(low, pair);
      sum[r][1] += multiply_pairs(high, pair);
    }
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

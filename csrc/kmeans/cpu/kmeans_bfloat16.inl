// Scores as in kmeans_scores.inl from bfloat16, two elements of a row in a lane: half the instructions. No include
// guard: compiled for AVX-512 alone, by kmeans_assign.inl.
namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

#define DEEPCLUST_BFLOAT16 __attribute__((target("avx512bf16")))

// Packs `count` rows less the shift, and the squared norms of what it packs.
DEEPCLUST_BFLOAT16 inline void pack_pairs(const float* rows,   // (count, depth)
                                          const float* shift,  // (depth,)
                                          int64_t count, int64_t depth,
                                          float* panel,        // (pairs rounded up to 16, 32) bits
                                          float* squared_norm  // (32,)
) {
  for (int64_t begin = 0; begin < 32; begin += 16) {
    const float* source[16];  // the last row stands in for absent ones
    for (int64_t c = 0; c < 16; ++c) source[c] = rows + (begin + c < count ? begin + c : count - 1) * depth;
    Vec<float> squares = {};
    for (int64_t k = 0; k < depth; k += 32) {
      const uint32_t present = depth - k < 32 ? (uint32_t{1} << (depth - k)) - 1 : ~uint32_t{0};
      const __mmask16 low_lanes = present & 0xffff, high_lanes = present >> 16;
      const __m512 low_shift = _mm512_maskz_loadu_ps(low_lanes, shift + k);
      const __m512 high_shift = _mm512_maskz_loadu_ps(high_lanes, shift + k + 16);
      Vec<float> square[16];
#pragma GCC unroll 16
      for (int64_t c = 0; c < 16; ++c) {
        const __m512 low = _mm512_maskz_loadu_ps(low_lanes, source[c] + k) - low_shift;
        const __m512 high = _mm512_maskz_loadu_ps(high_lanes, source[c] + k + 16) - high_shift;
        square[c] = (Vec<float>)_mm512_cvtne2ps_pbh(high, low);
      }
      transpose<float>(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) {
        store(panel + (k / 2 + i) * 32 + begin, square[i]);
        squares = _mm512_dpbf16_ps(squares, (__m512bh)square[i], (__m512bh)square[i]);
      }
    }
    store(squared_norm + begin, squares);
  }
}

// Scores against centroids first ... first + kRows - 1. Meanwhile half a panel of rows comes nearer from `next_rows`
// on: packing reads more rows side by side than a processor foresees, and would wait for memory instead.
template <int64_t kRows>
DEEPCLUST_BFLOAT16 DEEPCLUST_INLINE void score_pair_tile(const AssignInputs<float>& in, int64_t first,
                                                         const float* panel,      // (in.pairs, 32) bits
                                                         const float* next_rows,  // (16, depth) or null
                                                         float* scores,           // (kRows, 32)
                                                         RunningScores<float>& running) {
  Vec<float> score[kRows][2];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; ++r) score[r][0] = score[r][1] = broadcast(in.bias[first + r]);
  for (int64_t k = 0; k < in.pairs; ++k) {
    const __m512bh low = (__m512bh)load(panel + k * 32), high = (__m512bh)load(panel + k * 32 + 16);
    if (next_rows != nullptr) {
      __builtin_prefetch(next_rows + k * 32, 0, 2);
      __builtin_prefetch(next_rows + k * 32 + 16, 0, 2);
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRows; ++r) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(in.pair_block[(first + r) * in.pairs + k]);
      score[r][0] = _mm512_dpbf16_ps(score[r][0], low, pair);
      score[r][1] = _mm512_dpbf16_ps(score[r][1], high, pair);
    }
  }
  running.take<kRows>(score, first, scores);
}

// Scores of a panel of rows against centroids [begin, end), from pairs. The first two tiles bring half of `next_rows`
// each, the panel that is packed next.
DEEPCLUST_BFLOAT16 inline void score_pairs(const AssignInputs<float>& in, int64_t begin, int64_t end,
                                           const float* panel,      // (in.pairs, 32) bits
                                           const float* next_rows,  // (32, depth), which may lie past the last, or null
                                           float* scores,           // (end - begin rounded up to 8, 32)
                                           PanelScores<float>& found) {
  RunningScores<float> running;
  int64_t c = begin;
  for (; c + 4 < end; c += 8) {
    score_pair_tile<8>(in, c, panel, next_rows, scores + (c - begin) * 32, running);
    next_rows = next_rows != nullptr && c == begin ? next_rows + in.pairs * 32 : nullptr;
  }
  if (c < end) score_pair_tile<4>(in, c, panel, next_rows, scores + (c - begin) * 32, running);
  running.finish(found);
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

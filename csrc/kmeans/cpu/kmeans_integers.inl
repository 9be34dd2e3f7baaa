// Scores as in kmeans_scores.inl from 16-bit integers: at half the cost, and with wider bounds. No include guard:
// compiled once per capability, by kmeans_assign.inl.
#include "kmeans/cpu/kmeans_scores.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Rounds packed centroids to 16-bit integers of one scale, which makes the longest of norm kIntegerNorm; pairs of them
// side by side.
inline void integer_centroids(const AssignInputs<float>& in, int64_t begin, int64_t end,
                              int32_t* integers  // (K rounded up to kPanelRows, pairs)
) {
  const float scale = in.reach > 0 ? kIntegerNorm / in.reach : 0.0f;
  for (int64_t c = begin; c < end; ++c) {
    round_row(in.block + c * block_stride(in.depth), scale, in.depth, integers + c * in.pairs);
  }
}

// Scores of a panel of rows, as integers, against centroids first ... first + kPanelRows - 1. Meanwhile `kBytes` for
// each pair come nearer from `next` on.
template <int64_t kBytes>
DEEPCLUST_INLINE void score_integer_tile(const AssignInputs<float>& in, int64_t first,
                                         const int32_t* panel,     // (pairs, kPanelColumns)
                                         const Vec<float>* units,  // (2,)
                                         const void* next,
                                         float* scores,  // (kPanelRows, kPanelColumns)
                                         RunningScores<float>& running) {
  constexpr int64_t kRows = Tile<float>::kPanelRows;
  Vec<int32_t> sum[kRows][2] = {};
  multiply_integer_tile<kRows, kBytes>(in.integer_block + first * in.pairs, panel, in.pairs, next, sum);
  Vec<float> score[kRows][2];
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
    score[r][0] = __builtin_convertvector(sum[r][0], Vec<float>) * units[0] + in.bias[first + r];
    score[r][1] = __builtin_convertvector(sum[r][1], Vec<float>) * units[1] + in.bias[first + r];
  }
  running.template take<kRows>(score, first, scores);
}

// The same against centroids [begin, end). The first tile brings `next_rows`, the panel that is packed next.
inline void score_integers(const AssignInputs<float>& in, int64_t begin, int64_t end,
                           const int32_t* panel,    // (pairs, kPanelColumns)
                           const float* norm,       // (kPanelColumns,)
                           const float* next_rows,  // (kPanelColumns, depth), which may lie past the last
                           float* scores,           // (end - begin rounded up to kPanelRows, kPanelColumns)
                           PanelScores<float>& found) {
  constexpr int64_t kRows = Tile<float>::kPanelRows, kWidth = Tile<float>::kPanelColumns;
  const float unit = in.reach / (kIntegerNorm * kIntegerNorm);
  const Vec<float> units[2] = {load(norm) * unit, load(norm + kWidth / 2) * unit};
  RunningScores<float> running;
  score_integer_tile<2 * kWidth * 4>(in, begin, panel, units, next_rows, scores, running);
  for (int64_t c = begin + kRows; c < end; c += kRows) {
    score_integer_tile<0>(in, c, panel, units, nullptr, scores + (c - begin) * kWidth, running);
  }
  running.finish(found);
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

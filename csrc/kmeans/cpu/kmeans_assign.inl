// Kernels of k-means for one capability; driven by kmeans_assign.cpp, which explains the method. No include guard:
// compiled once per capability.
#include "core/cpu/rows.inl"
#include "core/cpu/tile_core.inl"
#include "core/cpu/tile_integers.inl"
#include "kmeans/cpu/row_distance.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// L2-normalizes centroids [first, last) and says by how much their squared norms fall short of 1; false if one is not
// finite.
template <typename T>
bool normalize_centroids(const T* centroids,  // (K, depth)
                         int64_t first, int64_t last, int64_t depth,
                         T* normalized,  // (K, depth)
                         T* shortfall    // (K,)
) {
  bool finite = true;
  for (int64_t c = first; c < last; ++c) {
    T inverse_norm;
    T* row = normalized + c * depth;
    finite = normalize_rows(centroids + c * depth, 1, depth, true, row, &inverse_norm) && finite;
    shortfall[c] = inverse_norm < T(1 / kMinNorm) ? T(0) : 1 - squared_norm(row, depth);
  }
  return finite;
}

// Packs the centroids of a tile, less the shift, and their biases. False if one is not finite.
template <typename T>
bool pack_centroids(const AssignInputs<T>& in, int64_t first,
                    T* block,  // (kPanelRows, block_stride(depth))
                    T* bias    // (kPanelRows,)
) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  const int64_t count = in.clusters - first < kRows ? in.clusters - first : kRows;
  int64_t index[kRows];
  for (int64_t r = 0; r < count; ++r) index[r] = first + r;
  pack_rows(in.centroids, index, in.shift, count, in.depth, block);
  bool finite = true;
  for (int64_t r = 0; r < count; ++r) {
    bias[r] = T(-0.5) * squared_norm(block + r * block_stride(in.depth), in.depth);
    if (in.cosine) bias[r] -= T(0.5) * in.shortfall[first + r];
    if (!(bias[r] >= std::numeric_limits<T>::lowest())) {
      finite = finite && all_finite(in.centroids + (first + r) * in.depth, in.depth);
    }
  }
  for (int64_t r = count; r < kRows; ++r) bias[r] = std::numeric_limits<T>::quiet_NaN();  // which no comparison picks
  return finite;
}

// Rounds packed centroids to 16-bit integers of one scale, which makes the longest of norm kIntegerNorm; pairs of them
// side by side.
template <typename T>
void integer_centroids(const AssignInputs<T>& in, int64_t begin, int64_t end,
                       int32_t* integers  // (K rounded up to kPanelRows, pairs)
) {
  const int64_t stride = block_stride(in.depth);
  const T scale = in.reach > 0 ? static_cast<T>(kIntegerNorm) / in.reach : T(0);
  const auto rounded = [](T value) __attribute__((always_inline)) {
    return static_cast<int32_t>(value + (value > 0 ? T(0.5) : T(-0.5)));
  };
  for (int64_t c = begin; c < end; ++c) {
    const T* row = in.block + c * stride;
    int32_t* to = integers + c * in.pairs;
    for (int64_t p = 0; p < in.depth / 2; ++p) {
      to[p] = (rounded(row[2 * p] * scale) & 0xffff) | rounded(row[2 * p + 1] * scale) << 16;
    }
    if (in.depth % 2 != 0) to[in.pairs - 1] = rounded(row[in.depth - 1] * scale) & 0xffff;
  }
}

// What a panel of rows found: their best and second best scores, and the centroids of the best; -1 without a number.
template <typename T>
struct PanelScores {
  static constexpr int64_t kWidth = Tile<T>::kPanelColumns;
  T best[kWidth], second[kWidth];
  typename IntegerOf<T>::type centroid[kWidth];
};

// The same while it is found, a row in each lane of two vectors.
template <typename T>
struct RunningScores {
  static constexpr int64_t kLanes = VecOf<T>::kLanes;
  Vec<T> best[2], second[2];
  Mask<T> centroid[2];

  DEEPCLUST_INLINE RunningScores() {
    for (int64_t v = 0; v < 2; ++v) {
      best[v] = second[v] = broadcast(-std::numeric_limits<T>::infinity());
      centroid[v] = Mask<T>{} - 1;
    }
  }

  // Takes in the scores of centroids first ... first + kRows - 1, and writes them down.
  template <int64_t kRows>
  DEEPCLUST_INLINE void take(const Vec<T> (&score)[kRows][2], int64_t first, T* scores /* (kRows, kPanelColumns) */) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      const Mask<T> index = static_cast<typename IntegerOf<T>::type>(first + r) - Mask<T>{};
#pragma GCC unroll 2
      for (int64_t v = 0; v < 2; ++v) {
        store(scores + (2 * r + v) * kLanes, score[r][v]);
        const Mask<T> better = score[r][v] > best[v];
        const Vec<T> other = better ? best[v] : score[r][v];
        second[v] = other > second[v] ? other : second[v];
        best[v] = better ? score[r][v] : best[v];
        centroid[v] = better ? index : centroid[v];
      }
    }
  }

  DEEPCLUST_INLINE void finish(PanelScores<T>& found) const {
    for (int64_t v = 0; v < 2; ++v) {
      store(found.best + v * kLanes, best[v]);
      store(found.second + v * kLanes, second[v]);
      store<typename IntegerOf<T>::type>(found.centroid + v * kLanes, centroid[v]);
    }
  }
};

// Scores of a panel of rows against centroids [begin, end), from packed values.
template <typename T>
void score_panel(const AssignInputs<T>& in, int64_t begin, int64_t end,
                 const T* panel,  // (depth, kPanelColumns)
                 T* scores,       // (end - begin rounded up to kPanelRows, kPanelColumns)
                 PanelScores<T>& found) {
  constexpr int64_t kRows = Tile<T>::kPanelRows, kWidth = Tile<T>::kPanelColumns;
  const int64_t stride = block_stride(in.depth);
  RunningScores<T> running;
  for (int64_t c = begin; c < end; c += kRows) {
    Vec<T> score[kRows][2];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) score[r][0] = score[r][1] = broadcast(in.bias[c + r]);
    multiply_tile<kRows, false, 2>(in.block + c * stride, stride, panel, kWidth, in.depth, score);
    running.template take<kRows>(score, c, scores + (c - begin) * kWidth);
  }
  running.finish(found);
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

#if DEEPCLUST_VECTOR_BYTES == 64
// The same from bfloat16, two elements of a row in a lane: half the instructions.
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
#endif

// The nearest centroids of a panel of rows.
template <typename T>
struct PanelAssigner {
  static constexpr int64_t kWidth = Tile<T>::kPanelColumns;
  const AssignInputs<T>& in;
  const T* rows;  // (count, depth) normalized for the cosine
  int64_t count;
  T inverse_norm[kWidth];
  T margin[kWidth];       // by how much a score may be off, twice
  T score[kWidth];        // the best so far
  int64_t label[kWidth];  // the nearest centroid so far, -1 for none
  double near[kWidth];    // how near it is; NaN where no other came close

  DEEPCLUST_INLINE bool is_short(int64_t r) const { return in.cosine && !(inverse_norm[r] < T(1 / kMinNorm)); }

  DEEPCLUST_INLINE double nearness(int64_t r, int64_t c) const {
    const bool pair_is_short = is_short(r) || (in.cosine && in.shortfall[c] > 0);
    return closeness(rows + r * in.depth, in.centroids + c * in.depth, in.depth, in.cosine, pair_is_short);
  }

  void consider(int64_t r, int64_t c) {
    const double value = nearness(r, c);
    if (label[r] >= 0) {
      if (near[r] != near[r]) near[r] = nearness(r, label[r]);
      if (!(value > near[r])) return;
    }
    near[r] = value;
    label[r] = c;
  }

  // Finds margins of scores whose terms err by up to `term` times the norm of a row, besides their sums' rounding;
  // false if one is infinite. That of a row with NaN is NaN.
  bool set_margins(const T* squared_norm /* (kPanelColumns,) */, T term) {
    bool finite = true;
    for (int64_t r = 0; r < count; ++r) {
      const T norm = (1 + 2 * kPairRounding) * std::sqrt(squared_norm[r]), reach = norm + in.reach;
      margin[r] =
          2 * (norm * term + in.rounding * (reach * reach) + in.depth * std::numeric_limits<T>::min() * (1 + reach));
      finite = finite && (margin[r] <= std::numeric_limits<T>::max() || norm != norm);
    }
    return finite;
  }

  // Whether most rows have several scores within the margin.
  bool is_doubtful(const PanelScores<T>& found) const {
    int64_t uncertain = 0;
    for (int64_t r = 0; r < count; ++r) uncertain += found.second[r] >= found.best[r] - margin[r];
    return 2 * uncertain > count;
  }

  // Considers the centroids from `begin` on whose scores are within `margin` of the best one; a row that has NaN has
  // none.
  void consider_best(const PanelScores<T>& found, int64_t begin, int64_t end,
                     const T* scores  // (end - begin, kPanelColumns)
  ) {
    for (int64_t r = 0; r < count; ++r) {
      if (is_short(r)) continue;
      const T before = score[r];
      if (found.best[r] > before) score[r] = found.best[r];
      const T floor = score[r] - margin[r];
      if (!(found.best[r] >= floor)) continue;
      if (found.second[r] < floor && before < floor) {
        label[r] = found.centroid[r];
        near[r] = std::numeric_limits<double>::quiet_NaN();
        continue;
      }
      for (int64_t c = begin; c < end; ++c) {
        if (scores[(c - begin) * kWidth + r] >= floor) consider(r, c);
      }
    }
  }
};

// Labels and distances of rows first ... first + count - 1, at most kPanelColumns. `doubtful` says for how many more
// panels bfloat16 is not worth trying.
template <typename T>
void assign_panel(const AssignInputs<T>& in, int64_t first, int64_t count,
                  T* workspace,  // (assign_workspace<T>(...),)
                  [[maybe_unused]] int64_t& doubtful,
                  int64_t* labels,  // (N,)
                  T* distances      // (N,) or null
) {
  constexpr int64_t kWidth = Tile<T>::kPanelColumns;
  T* panel = workspace;
  T* normalized = panel + (in.depth > 16 ? in.depth : 16) * kWidth;
  T* scores = normalized + (in.cosine ? in.depth : 0) * kWidth;
  PanelAssigner<T> assigner{in, in.features + first * in.depth, count, {}, {}, {}, {}, {}};
  bool finite[kWidth];
  for (int64_t r = 0; r < count; ++r) {
    const int64_t offset = r * in.depth;
    finite[r] = !in.cosine || normalize_rows(assigner.rows + offset, 1, in.depth, true, normalized + offset,
                                             assigner.inverse_norm + r);
    assigner.score[r] = -std::numeric_limits<T>::infinity();
    assigner.label[r] = -1;
    assigner.near[r] = std::numeric_limits<double>::quiet_NaN();
  }
  if (in.cosine) assigner.rows = normalized;
  bool scored = false;
  T squared_norm[kWidth];
  PanelScores<T> found;
  // Scores of all centroids by score(begin, end) for a chunk of them; false if the first ones leave most rows open.
  const auto consider_all = [&](const auto& score) {
    for (int64_t begin = 0; begin < in.clusters; begin += in.chunk) {
      const int64_t end = begin + in.chunk < in.clusters ? begin + in.chunk : in.clusters;
      score(begin, end);
      if (begin == 0 && assigner.is_doubtful(found)) {
        doubtful = kDoubtfulPanels;
        return false;
      }
      assigner.consider_best(found, begin, end, scores);
    }
    return true;
  };
  if constexpr (std::is_same_v<T, float>) {
    if (in.integer_block != nullptr && doubtful == 0) {
      float norm[kWidth];
      int32_t* integers = reinterpret_cast<int32_t*>(panel);
      pack_columns(assigner.rows, in.depth, in.shift, 0, count, in.depth, panel, squared_norm);
      round_panel(panel, squared_norm, in.depth, integers, norm);
      scored = assigner.set_margins(squared_norm, integer_error(in.depth) * in.reach) &&
               consider_all([&](int64_t begin, int64_t end) {
                 const float* next_rows = in.features + (first + count) * in.depth;
                 score_integers(in, begin, end, integers, norm, next_rows, scores, found);
               });
    } else if (in.integer_block != nullptr) {
      --doubtful;
    }
  }
#if DEEPCLUST_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) {
    if (in.pair_block != nullptr && doubtful == 0) {
      pack_pairs(assigner.rows, in.shift, count, in.depth, panel, squared_norm);
      scored = assigner.set_margins(squared_norm, kPairRounding * in.reach + in.pair_error) &&
               consider_all([&](int64_t begin, int64_t end) {
                 const float* next_rows = begin == 0 ? in.features + (first + count) * in.depth : nullptr;
                 score_pairs(in, begin, end, panel, next_rows, scores, found);
               });
    } else if (in.pair_block != nullptr) {
      --doubtful;
    }
  }
#endif
  if (!scored && in.clusters > 1) {  // a single centroid needs no scores
    pack_columns(assigner.rows, in.depth, in.shift, 0, count, in.depth, panel, squared_norm);
    scored = assigner.set_margins(squared_norm, T(0));
    for (int64_t begin = 0; scored && begin < in.clusters; begin += in.chunk) {
      const int64_t end = begin + in.chunk < in.clusters ? begin + in.chunk : in.clusters;
      score_panel(in, begin, end, panel, scores, found);
      assigner.consider_best(found, begin, end, scores);
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    const bool compares = !scored || assigner.is_short(r);
    if (compares && finite[r] && all_finite(assigner.rows + r * in.depth, in.depth)) {
      for (int64_t c = 0; c < in.clusters; ++c) assigner.consider(r, c);
    }
    labels[first + r] = assigner.label[r];
  }
  for (int64_t r = 0; distances != nullptr && r < count; ++r) {
    double near = assigner.near[r];
    if (near != near && assigner.label[r] >= 0) near = assigner.nearness(r, assigner.label[r]);
    distances[first + r] = static_cast<T>(in.cosine ? 1 - near : -near);
  }
}

// Elements of T that assign_panel needs.
template <typename T>
int64_t assign_workspace(const AssignInputs<T>& in) {
  const int64_t panel = in.depth > 16 ? in.depth : 16;  // pairs of bfloat16 are packed 32 at a time
  return (panel + in.chunk + (in.cosine ? in.depth : 0)) * Tile<T>::kPanelColumns;
}

template <typename T>
DEEPCLUST_INLINE void add_row(const T* row /* (depth,) */, int64_t depth, T* sum /* (depth,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) store(sum + k, load(sum + k) + load(row + k));
  for (; k < depth; ++k) sum[k] += row[k];
}

// Moves what was added up of one cluster to its wide sums, which are nothing before the first time, and starts anew.
template <typename T>
void widen_sums(T* sums /* (depth,) */, int64_t depth, bool is_first, double* wide /* (depth,) */) {
  for (int64_t k = 0; k < depth; ++k) {
    wide[k] = (is_first ? 0.0 : wide[k]) + sums[k];
    sums[k] = T(0);
  }
}

// Sums and sizes of the clusters of rows [begin, end), in order. However many rows there are, a sum in T has no more
// than kRowsInT terms.
template <typename T>
void sum_part(const T* features,      // (N, depth)
              const int64_t* labels,  // (N,)
              int64_t begin, int64_t end, int64_t depth, int64_t clusters,
              double* wide,    // (clusters, depth) to work with; unused if T is double
              T* sums,         // (clusters, depth)
              int64_t* counts  // (clusters,)
) {
  constexpr bool kWidens = !std::is_same_v<T, double>;
  std::fill(sums, sums + clusters * depth, T(0));
  std::fill(counts, counts + clusters, int64_t{0});
  for (int64_t i = begin; i < end; ++i) {
    const int64_t label = labels[i];
    if (label < 0 || label >= clusters) continue;
    T* sum = sums + label * depth;
    add_row(features + i * depth, depth, sum);
    if (++counts[label] % kRowsInT == 0 && kWidens) {
      widen_sums(sum, depth, counts[label] == kRowsInT, wide + label * depth);
    }
  }
  for (int64_t c = 0; kWidens && c < clusters; ++c) {
    if (counts[c] < kRowsInT) continue;
    for (int64_t e = c * depth; e < (c + 1) * depth; ++e) sums[e] = static_cast<T>(wide[e] + sums[e]);
  }
}

// Adds the parts of the sums of one cluster, in order.
template <typename T>
void add_parts(const T* parts,  // (count, ...) of leading dimension `stride`
               int64_t count, int64_t stride, int64_t depth,
               double* wide,  // (depth,) to work with
               T* sum         // (depth,)
) {
  std::fill(wide, wide + depth, 0.0);
  for (int64_t part = 0; part < count; ++part) {
    for (int64_t k = 0; k < depth; ++k) wide[k] += parts[part * stride + k];
  }
  for (int64_t k = 0; k < depth; ++k) sum[k] = static_cast<T>(wide[k]);
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

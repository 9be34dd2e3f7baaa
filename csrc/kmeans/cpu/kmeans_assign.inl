// Kernels of k-means for one capability; driven by kmeans_assign.cpp, which explains the method. No include guard:
// compiled once per capability.
#include "core/cpu/rows.inl"
#include "core/cpu/tile_core.inl"
#include "core/cpu/tile_integers.inl"
#include "kmeans/cpu/kmeans_integers.inl"
#include "kmeans/cpu/kmeans_sums.inl"
#include "kmeans/cpu/row_distance.inl"
#if DEEPCLUST_VECTOR_BYTES == 64
#include "kmeans/cpu/kmeans_bfloat16.inl"
#endif

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

// The nearest centroids of a panel of rows.
template <typename T>
struct PanelAssigner {
  static constexpr int64_t kWidth = Tile<T>::kPanelColumns;
  const AssignInputs<T>& in;
  const T* rows;  // (count, depth) normalized for the cosine
  int64_t count;
  T inverse_norm[kWidth];
  T margin[kWidth];       // twice the largest error of a score: scores further apart are ordered with certainty
  T score[kWidth];        // the best score so far
  int64_t label[kWidth];  // the nearest centroid so far, -1 for none
  double near[kWidth];    // how near it is (see closeness); NaN while no other centroid came close enough to ask

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

  // Sets the margins, for scores that err by up to `term` times the norm of the row, plus the rounding of their sums.
  // False if a margin is infinite. The margin of a row with NaN is NaN.
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

  // Whether most rows have a second score within the margin of the best, so that scores alone do not decide.
  bool is_doubtful(const PanelScores<T>& found) const {
    int64_t uncertain = 0;
    for (int64_t r = 0; r < count; ++r) uncertain += found.second[r] >= found.best[r] - margin[r];
    return 2 * uncertain > count;
  }

  // For each row, compares the centroids begin ... end - 1 whose scores are within its margin of the best score so far.
  // If only one is, and no earlier score is either, that one becomes the label without any distance. A row with NaN has
  // no such centroid.
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

// Labels and distances of rows first ... first + count - 1, at most kPanelColumns of them. The rows are scored against
// all centroids by the first of these that applies: 16-bit integers, bfloat16, products in T. Only scores that rounding
// cannot order lead to distances. `doubtful` counts down the next panels for which the rough scores (integers,
// bfloat16) are not tried, because they left most rows of a panel open.
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
  // Step 1: the rows, normalized for the cosine. No row has a centroid yet.
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
  // Calls score(begin, end), which computes scores x.y - |y|^2 / 2, for one chunk of centroids after the other, and
  // compares the centroids that the margin leaves open. False if the first chunk leaves most rows open: then these
  // scores are too rough for the panel, and finer ones are computed.
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
  // Step 2a: scores from 16-bit integers, unless an earlier panel was left open.
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
  // Step 2b: scores from bfloat16, under the same condition. (Inputs have blocks of integers or of bfloat16, not both.)
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
  // Step 2c: scores in the type of the rows, if there are none yet. A single centroid needs none.
  if (!scored && in.clusters > 1) {
    pack_columns(assigner.rows, in.depth, in.shift, 0, count, in.depth, panel, squared_norm);
    scored = assigner.set_margins(squared_norm, T(0));
    for (int64_t begin = 0; scored && begin < in.clusters; begin += in.chunk) {
      const int64_t end = begin + in.chunk < in.clusters ? begin + in.chunk : in.clusters;
      score_panel(in, begin, end, panel, scores, found);
      assigner.consider_best(found, begin, end, scores);
    }
  }
  // Step 3: labels. Rows without scores, and rows too short to have a direction, are compared with all centroids.
  for (int64_t r = 0; r < count; ++r) {
    const bool compares = !scored || assigner.is_short(r);
    if (compares && finite[r] && all_finite(assigner.rows + r * in.depth, in.depth)) {
      for (int64_t c = 0; c < in.clusters; ++c) assigner.consider(r, c);
    }
    labels[first + r] = assigner.label[r];
  }
  // Step 4: distances |x - y| or 1 - cos. Rows whose label was decided by scores alone compute theirs only now.
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

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

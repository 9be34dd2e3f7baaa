// Scores of a panel of rows against centroids, in the type of the rows, and what is kept of scores. No include guard:
// compiled once per capability, by kmeans_assign.inl.
namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

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

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

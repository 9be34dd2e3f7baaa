// Which scores of a tile may be above their queries' thresholds, by 16-bit integers (core/cpu/tile_integers.inl): at
// half the cost of the scores. Only those are computed, with the bits that the tile core would give them. No include
// guard: compiled once per capability, by nearest_neighbors.inl.
#include "core/cpu/tile_integers.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// By how much a score of two rows of norm 1, in integers or in chains of float32, is off at most.
inline float filter_margin(int64_t depth) {
  return integer_error(depth) + 4 * (static_cast<float>(depth) + 8) * std::numeric_limits<float>::epsilon();
}

// What a sum of integers exceeds wherever the score is above the threshold.
inline int32_t integer_limit(float threshold, float margin) {
  const double limit = (static_cast<double>(threshold) - margin) * kIntegerNorm * kIntegerNorm;
  constexpr double kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();
  return static_cast<int32_t>(std::floor(limit < kLowest ? kLowest : limit > kHighest ? kHighest : limit));
}

// Some rows of a tile and queries of a block, whose scores have to be computed.
struct UncertainPairs {
  static constexpr int64_t kPerPanel = 16;  // more of a panel cost as much as all its scores

  int64_t count = 0;
  int16_t row[kPerPanel * kMaxPanels], query[kPerPanel * kMaxPanels];
};

// Adds what may be above its limit, of the rows of a tile and a panel of queries. False, and nothing is added, if that
// is too much.
inline bool filter_tile(const int32_t* rows,    // (kPanelRows, pairs)
                        const int32_t* panel,   // (pairs, kPanelColumns)
                        const int32_t* limits,  // (kPanelColumns,)
                        int64_t pairs, int64_t query, UncertainPairs& uncertain) {
  constexpr int64_t kRows = Tile<float>::kPanelRows, kLanes = VecOf<int32_t>::kLanes;
  Vec<int32_t> sum[kRows][2] = {};
  multiply_integer_tile<kRows, 0>(rows, panel, pairs, nullptr, sum);
  const int64_t before = uncertain.count;
#pragma GCC unroll 2
  for (int64_t v = 0; v < 2; ++v) {
    const Vec<int32_t> limit = load(limits + v * kLanes);
    Vec<int32_t> largest = sum[0][v];
#pragma GCC unroll 8
    for (int64_t r = 1; r < kRows; ++r) largest = sum[r][v] > largest ? sum[r][v] : largest;
    if (true_lanes(largest > limit) == 0) continue;
    uint64_t above[(kRows * kLanes + 63) / 64] = {};  // a bit for each score, by row and then lane
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRows; ++r) {
      above[r * kLanes / 64] |= static_cast<uint64_t>(true_lanes(sum[r][v] > limit)) << (r * kLanes % 64);
    }
    for (int64_t word = 0; word * 64 < kRows * kLanes; ++word) {
      for (uint64_t bits = above[word]; bits != 0; bits &= bits - 1) {
        const int64_t place = word * 64 + __builtin_ctzll(bits);
        if (uncertain.count - before == UncertainPairs::kPerPanel) {
          uncertain.count = before;
          return false;
        }
        uncertain.row[uncertain.count] = static_cast<int16_t>(place / kLanes);
        uncertain.query[uncertain.count++] = static_cast<int16_t>(query + v * kLanes + place % kLanes);
      }
    }
  }
  return true;
}

// The chains of as many pairs of rows as a vector has lanes over elements [begin, end), as in multiply_tile.
DEEPCLUST_INLINE Vec<float> chain_of_pairs(const float* const (&row)[VecOf<float>::kLanes],
                                           const float* const (&query)[VecOf<float>::kLanes], int64_t begin,
                                           int64_t end) {
  constexpr int64_t kLanes = VecOf<float>::kLanes;
  Vec<float> sum = {};
  int64_t k = begin;
  for (; k + kLanes <= end; k += kLanes) {
    Vec<float> x[kLanes], y[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) {
      x[i] = load(row[i] + k);
      y[i] = load(query[i] + k);
    }
    transpose<float>(x);
    transpose<float>(y);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) sum += x[i] * y[i];
  }
  for (; k < end; ++k) {
    float x[kLanes], y[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      x[i] = row[i][k];
      y[i] = query[i][k];
    }
    sum += load(x) * load(y);
  }
  return sum;
}

// Their scores, with the bits of score_tile.
DEEPCLUST_INLINE Vec<float> score_pairs(const float* const (&row)[VecOf<float>::kLanes],
                                        const float* const (&query)[VecOf<float>::kLanes], int64_t depth) {
  Vec<float> score = chain_of_pairs(row, query, 0, depth < kChain ? depth : kChain);
  for (int64_t k = kChain; k < depth; k += kChain) {
    score += chain_of_pairs(row, query, k, depth - k < kChain ? depth : k + kChain);
  }
  return score;
}

// What stands beside a block of queries so that their scores can be filtered, tile by tile of the bank.
class QueryFilter {
 public:
  static int64_t workspace(int64_t padded, int64_t depth) {
    const int64_t pairs = (depth + 1) / 2;
    return padded * depth + (padded + Tile<float>::kPanelRows) * pairs + padded;
  }

  QueryFilter(const float* panels,      // (padded / kPanelColumns, depth, kPanelColumns)
              const float* thresholds,  // (padded,)
              int64_t padded, int64_t depth,
              float* memory  // (workspace(...),) that begins with the normalized queries
              )
      : pairs_((depth + 1) / 2),
        depth_(depth),
        margin_(filter_margin(depth)),
        queries_(memory),
        integers_(reinterpret_cast<int32_t*>(memory + padded * depth)),
        limits_(integers_ + padded * pairs_),
        rows_(limits_ + padded) {
    float one[kColumns], norm[kColumns];
    for (int64_t c = 0; c < kColumns; ++c) one[c] = 1;  // whatever is shorter keeps the same scale
    for (int64_t query = 0; query < padded; query += kColumns) {
      round_panel(panels + query * depth, one, depth, integers_ + query * pairs_, norm);
    }
    for (int64_t query = 0; query < padded; ++query) set_limit(query, thresholds[query]);
  }

  // Takes in the next tile of the bank, for take_panel() and settle().
  void take_tile(const float* tile /* (kPanelRows, block_stride(depth)) */) {
    for (int64_t r = 0; r < Tile<float>::kPanelRows; ++r) {
      round_row(tile + r * block_stride(depth_), kIntegerNorm, depth_, rows_ + r * pairs_);
    }
    uncertain_.count = 0;
  }

  // Keeps which scores of the panel that begins with `query` may matter. False if all of them have to be computed:
  // too many may, or did a short while ago.
  bool take_panel(int64_t query) {
    int8_t& doubtful = doubtful_[query / kColumns];
    if (doubtful > 0) return false;
    if (filter_tile(rows_, integers_ + query * pairs_, limits_ + query, pairs_, query, uncertain_)) return true;
    doubtful = kDoubtfulTiles + 1;
    return false;
  }

  // Takes in the thresholds of a panel whose scores were all computed.
  void panel_was_scored(const float* thresholds /* (padded,) */, int64_t query) {
    if (--doubtful_[query / kColumns] > 0) return;
    for (int64_t q = query; q < query + kColumns; ++q) set_limit(q, thresholds[q]);
  }

  // Computes the scores that may matter, and adds those above their thresholds to the lists.
  void settle(const float* tile,     // (kPanelRows, block_stride(depth))
              const int64_t* index,  // (kPanelRows,)
              const NeighborLists<float>& lists, float* thresholds /* (padded,) */) {
    constexpr int64_t kLanes = VecOf<float>::kLanes;
    for (int64_t first = 0; first < uncertain_.count; first += kLanes) {
      const int64_t present = uncertain_.count - first < kLanes ? uncertain_.count - first : kLanes;
      const float *row[kLanes], *query[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t pair = i < present ? first + i : first;
        row[i] = tile + uncertain_.row[pair] * block_stride(depth_);
        query[i] = queries_ + uncertain_.query[pair] * depth_;
      }
      float scores[kLanes];
      store(scores, score_pairs(row, query, depth_));
      for (int64_t i = 0; i < present; ++i) {
        const int64_t q = uncertain_.query[first + i];
        if (take_score(lists, q, scores[i], index[uncertain_.row[first + i]], thresholds[q])) {
          set_limit(q, thresholds[q]);
        }
      }
    }
  }

 private:
  static constexpr int64_t kColumns = Tile<float>::kPanelColumns;

  void set_limit(int64_t query, float threshold) { limits_[query] = integer_limit(threshold, margin_); }

  int64_t pairs_, depth_;          // pairs of a row: depth / 2, rounded up
  float margin_;                   // of a score
  const float* queries_;           // (padded, depth) normalized
  int32_t* integers_;              // (padded / kPanelColumns, pairs, kPanelColumns) the same
  int32_t* limits_;                // (padded,)
  int32_t* rows_;                  // (kPanelRows, pairs) of the tile
  int8_t doubtful_[kMaxPanels]{};  // for how many more tiles filtering a panel is not worth trying
  UncertainPairs uncertain_;
};

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

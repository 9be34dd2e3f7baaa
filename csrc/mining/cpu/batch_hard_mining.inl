// Kernels of batch-hard mining for one capability; driven by batch_hard_mining.cpp, which explains the method.
// No include guard: compiled once per capability.
#include "core/cpu/rows.inl"
#include "core/cpu/tile_core.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// The columns of a row are grouped by lane: kSpan vectors of scores next to each other form kLanes groups of kSpan
// columns, `kLanes` apart, so that the extremes of all groups come from vertical comparisons alone. A test looks
// through N / kSpan extremes, in vectors, and through the kSpan scores of one group.
constexpr int64_t kSpan = 16;

// Tests in order before a row looks at how many columns could be its positive. Measured: a handful is enough for most
// rows whose classes do not follow the order of D.
constexpr int64_t kOrderedTests = 4;
// Up to 1 / kDensePayoff of all columns are tested one by one, which is cheaper than the row's product with all teacher
// rows. Measured.
constexpr int64_t kDensePayoff = 8;
// How many rows of a block still try without the product where most rows of the last block needed it. Measured: a few,
// since tests in vain are added to the product.
constexpr int64_t kTriesInVain = 2;
// Row panels that share a pass over the teacher columns. Measured: with fewer these are read more often, with more
// their scores take more memory.
constexpr int64_t kProductPanels = 4;

// Distance of every row to its own student, and of the teacher to the shift; columns up to `padded` get distance 0.
template <typename T>
void measure_rows(const T* teacher,  // (count, depth)
                  const T* student,  // (count, depth)
                  const T* shift,    // (depth,)
                  int64_t count, int64_t padded, int64_t depth,
                  T* self_squared,         // (padded,)
                  T* self_distance,        // (padded,)
                  T* teacher_norm_squared  // (padded,)
) {
  for (int64_t r = 0; r < padded; ++r) {
    const T squared = r < count ? squared_distance(teacher + r * depth, student + r * depth, depth) : T(0);
    self_squared[r] = squared > T(kMinSquaredDistance) ? squared : T(kMinSquaredDistance);
    self_distance[r] = std::sqrt(self_squared[r]);
    teacher_norm_squared[r] = r < count ? squared_distance(teacher + r * depth, shift, depth) : T(0);
  }
}

// Scores of one row with what the search for its extremes keeps: the larger a score, the nearer the column.
template <typename T>
struct RowScan {
  T* scores;               // (padded,) NaN where a column is absent or has been taken out
  T* group_max;            // (padded / kSpan,)
  T* group_min;            // (padded / kSpan,) over the columns that can be a positive
  const T* self_distance;  // (padded,)
  int64_t padded;
  T own_distance;      // self_distance of the row
  T positive_minimum;  // a positive j has score + own_distance * self_distance[j] + self_distance[j]^2 / 2 above this

  DEEPCLUST_INLINE Vec<T> positive_or_infinity(int64_t column) const {
    const Vec<T> score = load(scores + column);
    const Vec<T> reach = load(self_distance + column);
    const Vec<T> bound = score + reach * (reach * T(0.5) + own_distance);
    return bound >= positive_minimum ? score : broadcast(std::numeric_limits<T>::infinity());
  }

  // Extremes of the groups whose columns lie in [begin, end); begin is a multiple of kSpan * kLanes.
  void update_groups(int64_t begin, int64_t end) {
    constexpr int64_t kLanes = VecOf<T>::kLanes;
    for (int64_t first = begin; first < end; first += kSpan * kLanes) {
      const int64_t last = first + kSpan * kLanes < end ? first + kSpan * kLanes : end;
      Vec<T> largest = broadcast(-std::numeric_limits<T>::infinity());
      Vec<T> smallest = broadcast(std::numeric_limits<T>::infinity());
      for (int64_t column = first; column < last; column += kLanes) {
        const Vec<T> score = load(scores + column);
        const Vec<T> positive = positive_or_infinity(column);
        largest = score > largest ? score : largest;
        smallest = positive < smallest ? positive : smallest;
      }
      store(group_max + first / kSpan, largest);
      store(group_min + first / kSpan, smallest);
    }
  }

  // First column of the group, and one past its last.
  int64_t group_begin(int64_t group) const {
    constexpr int64_t kLanes = VecOf<T>::kLanes;
    return group / kLanes * kLanes * kSpan + group % kLanes;
  }
  int64_t group_end(int64_t group) const {
    const int64_t end = group_begin(group) + kSpan * VecOf<T>::kLanes;
    return end < padded ? end : padded;
  }
  int64_t groups() const { return divide_up(padded, kSpan * VecOf<T>::kLanes) * VecOf<T>::kLanes; }

  bool can_be_positive(int64_t column) const {
    const T reach = self_distance[column];
    return scores[column] + reach * (reach * T(0.5) + own_distance) >= positive_minimum;
  }

  void take_out(int64_t column) {
    constexpr int64_t kLanes = VecOf<T>::kLanes;
    scores[column] = std::numeric_limits<T>::quiet_NaN();
    const int64_t group = column / (kLanes * kSpan) * kLanes + column % kLanes;
    T largest = -std::numeric_limits<T>::infinity();
    T smallest = std::numeric_limits<T>::infinity();
    for (int64_t j = group_begin(group); j < group_end(group); j += kLanes) {
      const T score = scores[j];
      if (score > largest) largest = score;
      if (score < smallest && can_be_positive(j)) smallest = score;
    }
    group_max[group] = largest;
    group_min[group] = smallest;
  }

  // The lowest column that holds the largest (kLargest) or the smallest candidate score; -1 if none is left.
  template <bool kLargest>
  int64_t extreme(T* value) const {
    constexpr int64_t kLanes = VecOf<T>::kLanes;
    const T* extremes = kLargest ? group_max : group_min;
    const int64_t count = groups();
    Vec<T> best = load(extremes);
    for (int64_t g = kLanes; g < count; g += kLanes) {
      const Vec<T> other = load(extremes + g);
      best = (kLargest ? other > best : other < best) ? other : best;
    }
    T lanes[kLanes];
    store(lanes, best);
    T found = lanes[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) {
      found = (kLargest ? lanes[lane] > found : lanes[lane] < found) ? lanes[lane] : found;
    }
    *value = found;
    if (std::isinf(found)) return -1;
    int64_t lowest = padded;
    for (int64_t g = 0; g < count; ++g) {
      if (extremes[g] != found) continue;
      for (int64_t j = group_begin(g); j < group_end(g); j += kLanes) {
        if (scores[j] == found && (kLargest || can_be_positive(j))) {
          lowest = j < lowest ? j : lowest;
          break;
        }
      }
    }
    return lowest;
  }
};

// The hardest pairs of a row among the columns classified so far, by exact squared distance and lowest index, and which
// scores can still beat them given that a score errs by at most `margin`.
template <typename T>
struct BestPairs {
  T norm_squared;  // of the centered row: a score is (norm_squared - squared distance) / 2
  T margin;
  T positive_squared = T(-1);
  T negative_squared = std::numeric_limits<T>::infinity();
  int64_t positive = -1;
  int64_t negative = -1;
  T positive_ceiling = std::numeric_limits<T>::infinity();
  T negative_floor = -std::numeric_limits<T>::infinity();
  T squared[4] = {-1, -1, -1, -1};  // of the pairs, in the order of measure_pairs, not clamped; -1 where not computed

  bool can_be_positive(T score) const { return score <= positive_ceiling; }
  bool can_be_negative(T score) const { return score >= negative_floor; }

  // Keeps a negative if it is the nearest so far, and a positive if it is the farthest; of equal ones the lowest index.
  void add(bool is_negative, T across, T among_teachers, int64_t column) {
    const T clamped = across > T(kMinSquaredDistance) ? across : T(kMinSquaredDistance);
    const T score = T(0.5) * (norm_squared - clamped);
    if (is_negative && (clamped < negative_squared || (clamped == negative_squared && column < negative))) {
      negative_squared = clamped;
      negative = column;
      negative_floor = score - margin;
      squared[1] = across;
      squared[3] = among_teachers;
    }
    if (!is_negative && (clamped > positive_squared || (clamped == positive_squared && column < positive))) {
      positive_squared = clamped;
      positive = column;
      positive_ceiling = score + margin;
      squared[0] = across;
      squared[2] = among_teachers;
    }
  }
};

// Work on one row: its scores and the pairs found.
template <typename T>
struct RowMiner {
  const MiningInputs<T>& in;
  int64_t row;
  RowScan<T> scan;
  BestPairs<T>& best;

  DEEPCLUST_INLINE T squared_to(const T* others, int64_t column) const {
    return squared_distance(in.teacher + row * in.depth, others + column * in.depth, in.depth);
  }

  // Adds a column of known class, unless its score rules it out; `among_teachers` is -1 where it is not known.
  void add(bool negative, int64_t column, T among_teachers) {
    const T score = scan.scores[column];
    if (!(negative ? best.can_be_negative(score) : best.can_be_positive(score))) return;
    best.add(negative, squared_to(in.student, column), among_teachers, column);
  }

  // A column is a negative if DT_ij > D_ii, else a positive, also where they are equal.
  void classify(int64_t column) {
    const T among_teachers = squared_to(in.teacher, column);
    add(among_teachers > in.self_squared[row], column, among_teachers);
  }

  // Classifies columns from both ends of the score order until no other can win. False after `limit` tests.
  bool mine_in_order(int64_t limit) {
    const T own = in.self_squared[row];  // clamped, so that what is not above the clamp is computed again
    best.add(false, own > T(kMinSquaredDistance) ? own : squared_to(in.student, row), T(0), row);
    scan.take_out(row);
    // No teacher row is farther from this one than the sum of their distances from the shift.
    const T reach = std::sqrt(in.teacher_norm_squared[row]) + in.teacher_norm_max;
    bool negative_open = reach * (1 + in.rounding) >= scan.own_distance;
    bool positive_open = true;
    for (int64_t tests = 0; negative_open || positive_open; ++tests) {
      T score;
      if (negative_open) {
        const int64_t column = scan.template extreme<true>(&score);
        negative_open = column >= 0 && best.can_be_negative(score);
        if (negative_open) {
          if (tests >= limit) return false;
          classify(column);
          scan.take_out(column);
        }
      }
      if (positive_open) {
        const int64_t column = scan.template extreme<false>(&score);
        positive_open = column >= 0 && best.can_be_positive(score);
        if (positive_open && tests == kOrderedTests) {
          positive_open = !classify_possible_positives();
        } else if (positive_open) {
          if (tests >= limit) return false;
          classify(column);
          scan.take_out(column);
        }
      }
    }
    return true;
  }

  // Classifies every column that could still be the hardest positive, in any order, unless they are too many for that
  // to be cheaper than the row's product. In a clustered batch they are the anchor's own cluster.
  bool classify_possible_positives() {
    constexpr int64_t kLanes = VecOf<T>::kLanes;
    Mask<T> minus_count = {};
    for (int64_t column = 0; column < in.padded; column += kLanes) {
      minus_count += scan.positive_or_infinity(column) <= best.positive_ceiling;
    }
    int64_t count = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) count -= minus_count[lane];
    if (count > in.count / kDensePayoff) return false;
    for (int64_t column = 0; column < in.padded; column += kLanes) {
      const Vec<T> positive = scan.positive_or_infinity(column);
      if (!any_lane<T>(positive <= best.positive_ceiling)) continue;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        if (best.can_be_positive(positive[lane])) classify(column + lane);
      }
    }
    return true;
  }

  // Settles the row by its scores against all teacher rows; only columns within rounding of the class threshold, or of
  // the best score of their class, are looked at exactly.
  void mine_by_product(const T* teacher_scores /* (padded,) */) {
    constexpr int64_t kLanes = VecOf<T>::kLanes;
    const T norm = std::sqrt(in.teacher_norm_squared[row]);
    const T threshold = T(0.5) * (in.teacher_norm_squared[row] - in.self_squared[row]);
    const T margin = in.rounding * (norm + in.teacher_norm_max) * (norm + in.teacher_norm_max);
    const T below = threshold - margin;  // teachers that score less are negatives for certain
    const T above = threshold + margin;  // those that score more, positives
    const T infinity = std::numeric_limits<T>::infinity();
    Vec<T> nearest = broadcast(-infinity);
    Vec<T> farthest = broadcast(-infinity);
    for (int64_t column = 0; column < in.padded; column += kLanes) {
      const Vec<T> score = load(scan.scores + column);
      const Vec<T> teacher_score = load(teacher_scores + column);
      const Vec<T> negative = teacher_score < below ? score : broadcast(-infinity);
      const Vec<T> positive = teacher_score > above ? -score : broadcast(-infinity);
      nearest = negative > nearest ? negative : nearest;
      farthest = positive > farthest ? positive : farthest;
    }
    // What those of known class leave to the others; both scores that are compared may err by the margin.
    const T sure_floor = max_lanes<T>(nearest) - 2 * best.margin;
    const T sure_ceiling = 2 * best.margin - max_lanes<T>(farthest);
    for (int64_t column = 0; column < in.padded; column += kLanes) {
      const Vec<T> score = load(scan.scores + column);
      const Vec<T> teacher_score = load(teacher_scores + column);
      const Mask<T> candidate = ((teacher_score <= above) & (score >= sure_floor) & (score >= best.negative_floor)) |
                                ((teacher_score >= below) & (score <= sure_ceiling) & (score <= best.positive_ceiling));
      if (!any_lane<T>(candidate)) continue;
      for (int64_t j = column; j < column + kLanes; ++j) {
        if (teacher_scores[j] < below || teacher_scores[j] > above) {
          add(teacher_scores[j] < below, j, T(-1));
        } else if (best.can_be_negative(scan.scores[j]) || best.can_be_positive(scan.scores[j])) {
          classify(j);
        }
      }
    }
  }
};

// Mines the given rows. Every row first tries to find its pairs by a few exact tests in the order of its distances.
// Rows that take more than `limit` tests are open, and get their row of the second product, teacher with teacher.
// `expect_product` carries from block to block whether most rows were open. If so, only the first few rows of the block
// try; if these stay open too, the others go to the product at once.
template <typename T>
void mine_rows(const MiningInputs<T>& in,
               int64_t first,  // rows first ... first + count - 1
               int64_t count, int64_t limit,
               T* workspace,  // (mining_workspace<T>(...),)
               bool* expect_product,
               int64_t* positive_index,  // (N,)
               int64_t* negative_index,  // (N,)
               T* squared                // (4, N) of the pairs, -1 where not computed
) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  constexpr int64_t kBatch = kProductPanels * kRows;
  const int64_t padded_rows = round_up(count, kRows);
  const int64_t group_stride = in.padded / kSpan + kLanes;
  T* block = workspace;
  T* scores = block + padded_rows * block_stride(in.depth);
  T* groups = scores + padded_rows * in.padded;
  T* teacher_scores = groups + padded_rows * 2 * group_stride;
  // Step 1: the teacher rows of the block, packed, with the shift subtracted.
  int64_t rows[kMaxBlockRows + kRows];
  for (int64_t r = 0; r < count; ++r) rows[r] = first + r;
  pack_rows(in.teacher, rows, in.shift, count, in.depth, block);
  // The scores of a row, and a bound that says which columns can be positives: by the triangle inequality DT_ij <= D_ii
  // implies D_ij <= D_ii + D_jj. positive_minimum is this bound on a score, lowered by what rounding may change.
  const auto scan_of = [&](int64_t r) {
    const T own = in.self_distance[first + r];
    const T norm = std::sqrt(in.teacher_norm_squared[first + r]);
    const T reach = norm + own + in.self_distance_max + in.student_norm_max;
    T* extremes = groups + r * 2 * group_stride;
    return RowScan<T>{scores + r * in.padded,
                      extremes,
                      extremes + group_stride,
                      in.self_distance,
                      in.padded,
                      own,
                      T(0.5) * (norm * norm - own * own) - in.rounding * reach * reach};
  };
  // The pairs of a row: none so far, and by how much a score of the row may err.
  const auto pairs_of = [&](int64_t r) {
    const T norm = std::sqrt(in.teacher_norm_squared[first + r]) + in.student_norm_max;
    return BestPairs<T>{in.teacher_norm_squared[first + r], in.rounding * norm * norm + T(kMinSquaredDistance)};
  };
  // How many rows try without the product in any case, and for how many rows the extremes of each group of columns are
  // found in step 2, while the scores are in cache.
  const int64_t tries = *expect_product ? kTriesInVain : kRows;
  const int64_t prepared = *expect_product && tries < count ? tries : count;
  // Step 2: the scores of the block against all students, in chunks of whole groups of columns. A chunk is at most 256
  // KB for 64 rows, so it is still in cache when the extremes of its groups are found.
  constexpr int64_t kChunk = 4 * kSpan * kLanes;
  for (int64_t begin = 0; begin < in.padded; begin += kChunk) {
    const int64_t end = begin + kChunk < in.padded ? begin + kChunk : in.padded;
    score_columns(block, in.student_panels, in.student_bias, count, begin, end, in.depth, scores, in.padded);
    for (int64_t r = 0; r < prepared; ++r) scan_of(r).update_groups(begin, end);
  }
  // Step 3: n_i and p_i by tests in the order of D. Open rows are collected at the front of `rows`, and so are rows
  // that do not try because most rows before them stayed open ("hopeless").
  BestPairs<T> best[kMaxBlockRows + kRows];
  int64_t open = 0;
  for (int64_t r = 0; r < count; ++r) {
    best[r] = pairs_of(r);
    RowMiner<T> miner{in, first + r, scan_of(r), best[r]};
    const bool hopeless = r >= tries && 2 * open > r;
    if (!hopeless && r >= prepared) miner.scan.update_groups(0, in.padded);
    if (hopeless || !miner.mine_in_order(limit)) rows[open++] = first + r;
  }
  *expect_product = 2 * open > count;
  // Step 4: n_i and p_i of the open rows by the second product, which gives their scores against all teachers.
  for (int64_t begin = 0; begin < open; begin += kBatch) {
    const int64_t batch = open - begin < kBatch ? open - begin : kBatch;
    pack_rows(in.teacher, rows + begin, in.shift, batch, in.depth, block);
    score_columns(block, in.teacher_panels, in.teacher_bias, batch, 0, in.padded, in.depth, teacher_scores, in.padded);
    for (int64_t i = 0; i < batch; ++i) {
      const int64_t r = rows[begin + i] - first;
      RowMiner<T>{in, first + r, scan_of(r), best[r]}.mine_by_product(teacher_scores + i * in.padded);
    }
  }
  // Step 5: the pairs, and the squared distances that the tests have computed.
  for (int64_t r = 0; r < count; ++r) {
    positive_index[first + r] = best[r].positive;
    negative_index[first + r] = best[r].negative;
    for (int64_t kind = 0; kind < 4; ++kind) squared[kind * in.count + first + r] = best[r].squared[kind];
  }
}

// Rows that are mined together: enough to reuse each column panel, few enough for cache and memory. All threads get
// about as many, in whole row panels.
template <typename T>
int64_t mining_block_rows(int64_t anchors, int64_t count, int64_t depth, int64_t threads) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  int64_t most = kMaxBlockRows;
  if (most > kMaxBlockElements / depth) most = kMaxBlockElements / depth;
  if (most > kMaxScoreElements / count) most = kMaxScoreElements / count;
  if (most < kRows) most = kRows;
  const int64_t share = divide_up(anchors, threads);
  return round_up(divide_up(share, divide_up(share, most)), kRows);
}

// Elements of T that mine_rows needs for `rows` rows.
template <typename T>
int64_t mining_workspace(int64_t rows, int64_t padded, int64_t depth) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  const int64_t padded_rows = round_up(rows, kRows);
  return padded_rows * (block_stride(depth) + padded + 2 * (padded / kSpan + VecOf<T>::kLanes)) +
         kProductPanels * kRows * padded;
}

// Distances of the mined pairs of rows [begin, end), each summed over squared differences; 0 for an absent pair. The
// inverse, the factor of every gradient, is 0 where the distance is clamped.
template <typename T>
void measure_pairs(const T* anchors,  // (N, depth)
                   const T* others,   // (N, depth) the rows that `index` points to
                   int64_t begin, int64_t end, int64_t depth,
                   const int64_t* index,  // (N,)
                   const T* known,        // (N,) squared distances, -1 where they are to be computed
                   T* distance,           // (N,)
                   T* inverse_distance    // (N,)
) {
  for (int64_t i = begin; i < end; ++i) {
    distance[i] = inverse_distance[i] = T(0);
    if (index[i] < 0) continue;
    const T squared =
        known[i] >= T(0) ? known[i] : squared_distance(anchors + i * depth, others + index[i] * depth, depth);
    distance[i] = std::sqrt(squared > T(kMinSquaredDistance) ? squared : T(kMinSquaredDistance));
    if (squared >= T(kMinSquaredDistance)) inverse_distance[i] = 1 / distance[i];
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

// Kernels of kmeans_seed for one capability; driven by kmeans_seed.cpp, which explains the method. No include guard:
// compiled once per capability.
#include "core/cpu/rows.inl"
#include "core/cpu/tile_core.inl"
#include "core/cpu/tile_integers.inl"
#include "kmeans/cpu/row_distance.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Normalizes rows [begin, end) for the cosine; false if one is not finite.
template <typename T>
bool normalize_seed_rows(const T* features, int64_t begin, int64_t end, int64_t depth,
                         T* normalized,   // (N, depth)
                         T* inverse_norm  // (N,)
) {
  return normalize_rows(features + begin * depth, end - begin, depth, true, normalized + begin * depth,
                        inverse_norm + begin);
}

template <typename T>
bool all_rows_finite(const T* rows, int64_t begin, int64_t end, int64_t depth) {
  for (int64_t i = begin; i < end; ++i) {
    if (!all_finite(rows + i * depth, depth)) return false;
  }
  return true;
}

// Elements of float that pack_seed_panels needs.
inline int64_t seed_workspace(int64_t depth) { return (2 * Tile<float>::kPanelColumns + 1) * depth; }

// Packs panels [begin, end) and finds the norms of their rows.
template <typename T>
void pack_seed_panels(const SeedState<T>& in, int64_t begin, int64_t end,
                      float* workspace  // (seed_workspace(depth),)
) {
  constexpr int64_t kColumns = Tile<float>::kPanelColumns;
  float* packed = workspace;                   // (depth, kColumns)
  float* rows = packed + kColumns * in.depth;  // (kColumns, depth)
  float* zeros = rows + kColumns * in.depth;   // (depth,)
  std::fill(zeros, zeros + in.depth, 0.0f);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * kColumns, count = in.count - first < kColumns ? in.count - first : kColumns;
    for (int64_t r = 0; r < count; ++r) {
      const T* row = in.rows + (first + r) * in.depth;
      for (int64_t k = 0; k < in.depth; ++k) rows[r * in.depth + k] = static_cast<float>(row[k] - in.shift[k]);
    }
    float squared_norm[kColumns];
    pack_columns(rows, in.depth, zeros, 0, count, in.depth, packed, squared_norm);
    round_panel(packed, squared_norm, in.depth, in.panels + first * in.pairs, in.norm + first);
  }
}

// Whether the normalized row is shorter than 1, so that its cosines come from products.
template <typename T>
DEEPCLUST_INLINE bool is_short_row(const SeedState<T>& in, int64_t i) {
  return in.cosine && !(in.inverse_norm[i] < T(1 / kMinNorm));
}

// Cost of row i for the center, without its weight: from the distance that kmeans_assign returns.
template <typename T>
DEEPCLUST_INLINE double seed_cost(const SeedState<T>& in, int64_t i, int64_t center) {
  const T* row = in.rows + center * in.depth;
  const bool is_short = is_short_row(in, i) || (is_short_row(in, center) && 1 - squared_norm(row, in.depth) > T(0));
  const double near = closeness(in.rows + i * in.depth, row, in.depth, in.cosine, is_short);
  const double distance = static_cast<T>(in.cosine ? 1 - near : -near);
  if (!in.cosine) return distance * distance;
  return distance > 0 ? distance : 0.0;
}

DEEPCLUST_INLINE double weighted(double cost, const double* weights, int64_t i) {
  return weights == nullptr ? cost : cost * weights[i];
}

// Sets the least cost of row i, and its bound: a candidate with
//
//     |y|^2 - 2 |x| |y| (q.q / kIntegerNorm^2 + integer_error) >= bound
//
// has a distance that is not below it. NaN, which no comparison fulfills, is the bound of rows that have no such proof.
// The slack covers the rounding of norms, of sums, and of the distance itself.
template <typename T>
DEEPCLUST_INLINE void set_least(const SeedState<T>& in, int64_t i, double cost) {
  in.least[i] = weighted(cost, in.weights, i);
  const double squared = in.cosine ? 2 * cost : cost, norm = in.norm[i];
  const double bound = squared * (1 + in.slack) - norm * norm * (1 - in.slack) + (in.cosine ? 1e-14 : 1e-30);
  const bool proves = norm * norm <= std::numeric_limits<float>::max() && !is_short_row(in, i);
  in.bound[i] = proves ? static_cast<float>(bound) : std::numeric_limits<float>::quiet_NaN();
}

template <typename T>
void start_seed_rows(const SeedState<T>& in, int64_t begin, int64_t end, int64_t center) {
  for (int64_t i = begin; i < end; ++i) set_least(in, i, seed_cost(in, i, center));
}

// What a search needs of its candidates.
template <typename T>
void gather_candidates(const SeedState<T>& in, const int64_t* places, int64_t count, const SeedCandidates& candidates) {
  constexpr int64_t kColumns = Tile<float>::kPanelColumns;
  for (int64_t c = 0; c < count; ++c) {
    const int64_t place = places[c];
    const int32_t* column = in.panels + place / kColumns * kColumns * in.pairs + place % kColumns;
    for (int64_t p = 0; p < in.pairs; ++p) candidates.pairs[c * in.pairs + p] = column[p * kColumns];
    const double norm = in.norm[place], square = norm * norm * (1 - in.slack);
    const bool proves = square <= std::numeric_limits<float>::max() && !is_short_row(in, place);
    candidates.square[c] = proves ? static_cast<float>(square) : std::numeric_limits<float>::quiet_NaN();
    candidates.slope[c] = static_cast<float>(2 * norm / (static_cast<double>(kIntegerNorm) * kIntegerNorm));
    candidates.error[c] = static_cast<float>(2 * norm) * integer_error(in.depth);
  }
}

// Rows of a panel, as bits, that candidates first ... first + kRows - 1 may be nearer to than what they have.
template <int64_t kRows, bool kIsFirst, typename T>
DEEPCLUST_INLINE void search_tile(const SeedState<T>& in, const SeedCandidates& candidates, int64_t first,
                                  int64_t panel, uint32_t* open /* (kRows,) */) {
  constexpr int64_t kLanes = VecOf<float>::kLanes, kColumns = Tile<float>::kPanelColumns;
  Vec<int32_t> sum[kRows][2] = {};
  const int32_t* rows = in.panels + panel * kColumns * in.pairs;
  multiply_integer_tile<kRows, kIsFirst ? kColumns * 4 : 0>(candidates.pairs + first * in.pairs, rows, in.pairs,
                                                            rows + kColumns * in.pairs, sum);
#pragma GCC unroll 2
  for (int64_t v = 0; v < 2; ++v) {
    const Vec<float> norm = load(in.norm + panel * kColumns + v * kLanes);
    const Vec<float> bound = load(in.bound + panel * kColumns + v * kLanes);
#pragma GCC unroll 4
    for (int64_t r = 0; r < kRows; ++r) {
      const Vec<float> product = __builtin_convertvector(sum[r][v], Vec<float>);
      const Vec<float> reach = product * candidates.slope[first + r] + candidates.error[first + r];
      const Mask<float> closed = candidates.square[first + r] - norm * reach >= bound;
      open[r] = (v == 0 ? 0 : open[r]) | true_lanes(~closed) << (v * kLanes);
    }
  }
}

// Finds which rows of panels [begin, end) each candidate is nearer to, and adds up by how much that lowers the sum of
// the integer costs.
template <typename T>
void search_panels(const SeedState<T>& in, const SeedCandidates& candidates, const int64_t* places, int64_t count,
                   int64_t begin, int64_t end, double scale,
                   uint32_t* nearer,  // (panels, count) rows as bits
                   int64_t* gains     // (count,)
) {
  constexpr int64_t kColumns = Tile<float>::kPanelColumns;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * kColumns, present = in.count - first < kColumns ? in.count - first : kColumns;
    const uint32_t all = present == 32 ? ~uint32_t{0} : (uint32_t{1} << present) - 1;
    uint32_t* open = nearer + panel * count;
    int64_t c = 0;
    if (count >= 4) search_tile<4, true>(in, candidates, 0, panel, open), c = 4;
    for (; c + 4 <= count; c += 4) search_tile<4, false>(in, candidates, c, panel, open + c);
    for (; c + 2 <= count; c += 2) search_tile<2, false>(in, candidates, c, panel, open + c);
    for (; c < count; ++c) search_tile<1, false>(in, candidates, c, panel, open + c);
    for (c = 0; c < count; ++c) {
      uint32_t found = 0;
      for (uint32_t rest = open[c] & all; rest != 0; rest &= rest - 1) {
        const int64_t lane = __builtin_ctz(rest), i = first + lane;
        const double cost = weighted(seed_cost(in, i, places[c]), in.weights, i);
        if (!(cost < in.least[i])) continue;
        found |= uint32_t{1} << lane;
        gains[c] += static_cast<int64_t>(in.least[i] * scale) - static_cast<int64_t>(cost * scale);
      }
      open[c] = found;
    }
  }
}

// Takes in a new center, to which `nearer` says which rows of panels [begin, end) are nearer; returns their largest
// cost.
template <typename T>
double take_center(const SeedState<T>& in, int64_t begin, int64_t end, int64_t center,
                   const uint32_t* nearer,  // of this center for the first panel, `stride` for each further one
                   int64_t stride) {
  constexpr int64_t kColumns = Tile<float>::kPanelColumns;
  for (int64_t panel = begin; panel < end; ++panel) {
    for (uint32_t rest = nearer[panel * stride]; rest != 0; rest &= rest - 1) {
      const int64_t i = panel * kColumns + __builtin_ctz(rest);
      set_least(in, i, seed_cost(in, i, center));
    }
  }
  const int64_t last = end * kColumns < in.count ? end * kColumns : in.count;
  double largest = 0;
  for (int64_t i = begin * kColumns; i < last; ++i) largest = in.least[i] > largest ? in.least[i] : largest;
  return largest;
}

inline int64_t sum_integers(const double* values, int64_t begin, int64_t end, double scale) {
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += static_cast<int64_t>(values[i] * scale);
  return sum;
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

// Kernels of k-means for one capability; driven by kmeans_assign.cpp, which explains the method. No include guard:
// compiled once per capability.
#include "common/rows.inl"
#include "common/tile_core.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// In a sum of indices stands for one; columns up to here add up without overflow.
constexpr int64_t kOne = int64_t{1} << 15;

template <typename T>
bool all_finite(const T* row /* (depth,) */, int64_t depth) {
  return squared_distance(row, row, depth) == T(0);  // Inf - Inf and NaN - NaN are NaN
}

// |x - y| where the squares leave the range of T: relative to the largest difference.
template <typename T>
double scaled_distance(const T* x /* (depth,) */, const T* y /* (depth,) */, int64_t depth) {
  const auto difference = [&](int64_t k) { return static_cast<double>(x[k]) - static_cast<double>(y[k]); };
  double largest = 0;
  for (int64_t k = 0; k < depth; ++k) {
    const double size = std::fabs(difference(k));
    if (size > largest) largest = size;
  }
  if (!(largest > 0 && largest <= std::numeric_limits<double>::max())) return largest;
  const int exponent = std::ilogb(largest);
  double sum = 0;
  for (int64_t k = 0; k < depth; ++k) {
    const double scaled = std::ldexp(difference(k), -exponent);
    sum += scaled * scaled;
  }
  return std::ldexp(std::sqrt(sum), exponent);
}

// How near a centroid is to a row, compared and in the end turned into the distance: the cosine or the negative
// Euclidean distance. Both come from summed squared differences, for vectors shorter than 1 after normalization from
// the product.
template <typename T>
DEEPCLUST_INLINE double closeness(const T* row,       // (depth,)
                                  const T* centroid,  // (depth,)
                                  int64_t depth, bool cosine, bool is_short) {
  if (cosine && is_short) {
    return sum_terms<T>(
        depth, [&](int64_t k) __attribute__((always_inline)) { return load(row + k) * load(centroid + k); },
        [&](int64_t k) __attribute__((always_inline)) { return row[k] * centroid[k]; });
  }
  const T squared = squared_distance(row, centroid, depth);
  if (cosine) return 1 - 0.5 * squared;
  const T tiny = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
  if (squared > tiny && squared <= std::numeric_limits<T>::max()) return -std::sqrt(static_cast<double>(squared));
  return -scaled_distance(row, centroid, depth);
}

// Packs a panel of centroids and their biases. False if one is not finite.
template <typename T>
bool pack_centroids(const AssignInputs<T>& in, int64_t first,
                    T* panel,  // (depth, kPanelColumns)
                    T* bias    // (kPanelColumns,)
) {
  pack_distance_columns(in.centroids, in.shift, first, in.clusters, in.depth, panel, bias);
  bool finite = true;
  for (int64_t c = 0; c < Tile<T>::kPanelColumns && first + c < in.clusters; ++c) {
    if (in.cosine) bias[c] -= T(0.5) * in.shortfall[first + c];
    if (!(bias[c] >= std::numeric_limits<T>::lowest())) {
      finite = finite && all_finite(in.centroids + (first + c) * in.depth, in.depth);
    }
  }
  return finite;
}

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
    const T squares = sum_terms<T>(
        depth, [&](int64_t k) __attribute__((always_inline)) { return load(row + k) * load(row + k); },
        [&](int64_t k) __attribute__((always_inline)) { return row[k] * row[k]; });
    shortfall[c] = inverse_norm < T(1 / kMinNorm) ? T(0) : 1 - squares;
  }
  return finite;
}

// A bound on the norms of packed rows, whatever NaN they have.
template <typename T>
T norm_bound(const T* block /* (count, block_stride(depth)) */, int64_t count, int64_t depth) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  Vec<T> largest = {};  // in each lane
  for (int64_t r = 0; r < count; ++r) {
    const T* row = block + r * block_stride(depth);
    Vec<T> squares = {};
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) squares += load(row + k) * load(row + k);
    for (; k < depth; ++k) squares[0] += row[k] * row[k];
    largest = squares > largest ? squares : largest;
  }
  return std::sqrt(sum_lanes<T>(largest));
}

// The nearest centroid of one row.
template <typename T>
struct RowAssigner {
  const AssignInputs<T>& in;
  const T* row;  // (depth,) normalized for the cosine
  bool is_short;
  double best;
  int64_t label;

  DEEPCLUST_INLINE void consider(int64_t c) {
    const bool pair_is_short = is_short || (in.cosine && in.shortfall[c] > 0);
    const double value = closeness(row, in.centroids + c * in.depth, in.depth, in.cosine, pair_is_short);
    if (label >= 0 && !(value > best)) return;
    best = value;
    label = c;
  }

  void consider_all() {
    for (int64_t c = 0; c < in.clusters; ++c) consider(c);
  }

  // Considers the columns whose scores are within `margin` of the best one: mostly a single one, and none if the row
  // has NaN.
  DEEPCLUST_INLINE void consider_best(const T* scores /* (columns,) */, T margin, const Mask<T>& lane) {
    constexpr int64_t kLanes = VecOf<T>::kLanes;
    Vec<T> largest = broadcast(-std::numeric_limits<T>::infinity());
    for (int64_t column = 0; column < in.columns; column += kLanes) {
      const Vec<T> score = load(scores + column);
      largest = score > largest ? score : largest;
    }
    const T floor = max_lanes<T>(largest) - margin;
    if (in.columns <= kOne) {  // columns that are that good add kOne and their index
      Mask<T> index = lane, sum = {};
      for (int64_t column = 0; column < in.columns; column += kLanes) {
        sum += (load(scores + column) >= floor) & index;
        index += kLanes;
      }
      const int64_t found = fold<kLanes>(
          sum, [](Mask<T> a, Mask<T> b) __attribute__((always_inline)) { return a + b; },
          std::make_integer_sequence<int64_t, kLanes>());
      if (found / kOne == 1) return consider(found % kOne);
    }
    for (int64_t c = 0; c < in.clusters; ++c) {
      if (scores[c] >= floor) consider(c);
    }
  }
};

// Labels and distances of rows first ... first + count - 1, at most kMaxBlockRows.
template <typename T>
void assign_rows(const AssignInputs<T>& in, int64_t first, int64_t count,
                 T* workspace,     // (assign_workspace<T>(...),)
                 int64_t* labels,  // (N,)
                 T* distances      // (N,)
) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  const int64_t padded_rows = (count + kRows - 1) / kRows * kRows;
  T* block = workspace;
  T* scores = block + padded_rows * block_stride(in.depth);
  T* normalized = scores + padded_rows * in.columns;
  const T* rows = in.features + first * in.depth;
  T inverse_norm[kMaxBlockRows];
  int64_t index[kMaxBlockRows];
  bool finite[kMaxBlockRows];
  for (int64_t r = 0; r < count; ++r) {
    index[r] = r;
    const int64_t offset = r * in.depth;
    finite[r] = !in.cosine || normalize_rows(rows + offset, 1, in.depth, true, normalized + offset, inverse_norm + r);
  }
  if (in.cosine) rows = normalized;
  T margin = std::numeric_limits<T>::infinity();
  if (in.clusters > 1) {  // a single centroid needs no scores
    pack_rows(rows, index, in.shift, count, in.depth, block);
    score_columns(block, in.panels, in.bias, count, 0, in.columns, in.depth, scores, in.columns);
    const T reach = norm_bound(block, count, in.depth) + in.reach;
    margin = 2 * (in.rounding * (reach * reach) + in.depth * std::numeric_limits<T>::min());
  }
  const bool in_range = margin <= std::numeric_limits<T>::max();
  Mask<T> lane;
  for (int64_t i = 0; i < VecOf<T>::kLanes; ++i) lane[i] = kOne + i;
  for (int64_t r = 0; r < count; ++r) {
    const bool is_short = in.cosine && !(inverse_norm[r] < T(1 / kMinNorm));
    RowAssigner<T> assigner{in, rows + r * in.depth, is_short, std::numeric_limits<double>::quiet_NaN(), -1};
    if (in_range && !is_short) {
      assigner.consider_best(scores + r * in.columns, margin, lane);
    } else if (finite[r] && (in_range || all_finite(assigner.row, in.depth))) {
      assigner.consider_all();
    }
    labels[first + r] = assigner.label;
    distances[first + r] = static_cast<T>(in.cosine ? 1 - assigner.best : -assigner.best);
  }
}

// Rows that are assigned together: enough to reuse each column panel, few enough for cache, memory and the threads.
template <typename T>
int64_t assign_block_rows(int64_t count, int64_t depth, int64_t columns, int64_t threads) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  int64_t rows = kMaxBlockRows;
  const int64_t share = (count + threads - 1) / threads;
  if (rows > share) rows = share;
  if (rows > kMaxBlockElements / depth) rows = kMaxBlockElements / depth;
  if (rows > kMaxBlockElements / columns) rows = kMaxBlockElements / columns;
  return rows < kRows ? kRows : rows / kRows * kRows;
}

// Elements of T that assign_rows needs for `rows` rows, a multiple of those of a panel.
template <typename T>
int64_t assign_workspace(int64_t rows, int64_t depth, int64_t columns, bool cosine) {
  return rows * (block_stride(depth) + columns + (cosine ? depth : 0));
}

// Columns that are multiplied: the clusters rounded up to whole vectors.
template <typename T>
int64_t score_columns_of(int64_t clusters) {
  return (clusters + VecOf<T>::kLanes - 1) / VecOf<T>::kLanes * VecOf<T>::kLanes;
}

template <typename T>
DEEPCLUST_INLINE void add_row(const T* row /* (depth,) */, int64_t depth, T* sum /* (depth,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) store(sum + k, load(sum + k) + load(row + k));
  for (; k < depth; ++k) sum[k] += row[k];
}

// Adds rows [begin, end) to the sums of their clusters, in order.
template <typename T>
void add_to_clusters(const T* features,      // (N, depth)
                     const int64_t* labels,  // (N,)
                     int64_t begin, int64_t end, int64_t depth, int64_t clusters,
                     T* sums,         // (clusters, depth)
                     int64_t* counts  // (clusters,)
) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t label = labels[i];
    if (label < 0 || label >= clusters) continue;
    ++counts[label];
    add_row(features + i * depth, depth, sums + label * depth);
  }
}

// Adds the parts of the sums of one cluster, in order.
template <typename T>
void add_parts(const T* parts,  // (count, ...) of leading dimension `stride`
               int64_t count, int64_t stride, int64_t depth,
               T* sum  // (depth,)
) {
  for (int64_t k = 0; k < depth; ++k) sum[k] = T(0);
  for (int64_t part = 0; part < count; ++part) add_row(parts + part * stride, depth, sum);
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

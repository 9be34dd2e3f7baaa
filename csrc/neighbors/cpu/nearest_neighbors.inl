// Kernels of nearest_neighbors; see nearest_neighbors.cpp. No include guard: compiled once per capability.

#include "core/cpu/rows.inl"
#include "core/cpu/tile_core.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Queries that are compared together: enough to make little of the normalizing of the bank, few enough for the cache.
template <typename T>
int64_t query_block_rows(int64_t depth) {
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  const int64_t rows = kMaxBlockElements / depth;
  return rows < kColumns ? kColumns : (rows > kMaxBlockRows ? kMaxBlockRows : rows) / kColumns * kColumns;
}

// Fetches a row into the cache; it may lie beyond the end of the bank, where nothing happens.
template <typename Source>
DEEPCLUST_INLINE void prefetch_row(const Source* bank, int64_t row, int64_t depth) {
  constexpr int64_t kCacheLine = 64;
  const int64_t bytes = depth * static_cast<int64_t>(sizeof(Source));
  const uintptr_t from = reinterpret_cast<uintptr_t>(bank) + row * bytes;  // no pointer, for it may point nowhere
  for (int64_t byte = 0; byte < bytes; byte += kCacheLine)
    __builtin_prefetch(reinterpret_cast<const void*>(from + byte));
}

// The row as T: itself where it is that, else converted into `memory`.
template <typename T, typename Source>
DEEPCLUST_INLINE const T* row_as(const Source* row /* (depth,) */, T* memory /* (depth,) */, int64_t depth) {
  if constexpr (std::is_same_v<T, Source>) {
    return row;
  } else {
    for (int64_t k = 0; k < depth; ++k) memory[k] = static_cast<T>(row[k]);
    return memory;
  }
}

// Normalizes a row of any dtype; returns whether it is finite.
template <typename T, typename Source>
bool normalize_source(const Source* row, int64_t depth, T* normalized) {
  T inverse_norm;
  return normalize_rows(row_as(row, normalized, depth), 1, depth, true, normalized, &inverse_norm);
}

// Normalizes rows of the bank for a tile; returns whether all are finite. All norms come first, for what they wait for
// are long divisions and roots, but not each other.
template <typename T, typename Source>
bool normalize_tile(const Source* bank,    // (M, depth)
                    const int64_t* index,  // (count,) at most kPanelRows
                    int64_t count, int64_t depth,
                    T* rows  // (kPanelRows, block_stride(depth))
) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const int64_t stride = block_stride(depth);
  const T* source[Tile<T>::kPanelRows];
  T inverse_norm[Tile<T>::kPanelRows];
  bool finite = true;
  for (int64_t r = 0; r < count; ++r) {
    source[r] = row_as(bank + index[r] * depth, rows + r * stride, depth);
    inverse_norm[r] = inverse_norm_of(source[r], depth, finite);
  }
  for (int64_t r = 0; r < count; ++r) {
    const T* from = source[r];
    T* to = rows + r * stride;
    const T scale = inverse_norm[r];
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) store(to + k, load(from + k) * scale);
    for (; k < depth; ++k) to[k] = from[k] * scale;
  }
  return finite;
}

// Normalizes queries and packs them into panels, and starts their lists. Those that are not finite find nothing, nor do
// those that fill up the last panel: no score is above their thresholds. The normalized rows of a panel lie where those
// of the one before lay, or, with `kept`, are kept behind them.
template <typename T, typename Source>
void pack_queries(const Source* query,  // (count, depth)
                  int64_t count, int64_t depth, const NeighborLists<T>& lists,
                  T* panels,      // (padded / kPanelColumns, depth, kPanelColumns)
                  T* thresholds,  // (padded,)
                  T* zeros,       // (depth,)
                  T* normalized,  // (padded or kPanelColumns, depth)
                  bool kept) {
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  for (int64_t k = 0; k < depth; ++k) zeros[k] = T(0);
  for (int64_t first = 0; first < count; first += kColumns) {
    const int64_t present = count - first < kColumns ? count - first : kColumns;
    T* memory = normalized + (kept ? first * depth : 0);
    for (int64_t c = 0; c < kColumns; ++c) {
      T* row = memory + c * depth;
      const bool takes_part = c < present && normalize_source(query + (first + c) * depth, depth, row);
      thresholds[first + c] = (takes_part ? -1 : 1) * std::numeric_limits<T>::infinity();
      if (c < present) lists.start(first + c, takes_part);
      for (int64_t k = 0; k < depth && !takes_part; ++k) row[k] = T(0);
    }
    T squared_norm[kColumns];
    pack_columns(memory, depth, zeros, 0, kColumns, depth, panels + first * depth, squared_norm);
  }
}

// Numbers in the order of their bits taken as an integer, so that halving an interval of these ends after as many steps
// as there are bits, however small the numbers.
template <typename T>
typename IntegerOf<T>::type key_of(T value) {
  using Key = typename IntegerOf<T>::type;
  const auto bits = reinterpret_cast<Mask<T>>(broadcast(value))[0];
  return bits < 0 ? bits ^ std::numeric_limits<Key>::max() : bits;
}

template <typename T>
T value_of(typename IntegerOf<T>::type key) {
  using Key = typename IntegerOf<T>::type;
  const Mask<T> bits = Mask<T>{} + (key < 0 ? key ^ std::numeric_limits<Key>::max() : key);
  return reinterpret_cast<Vec<T>>(bits)[0];
}

template <typename T>
DEEPCLUST_INLINE int64_t count_above(const T* values, int64_t count, T limit) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  Mask<T> sum = {};
  for (int64_t i = 0; i < count; i += kLanes) sum -= load(values + i) > limit;
  return fold<kLanes>(
      sum, [](Mask<T> a, Mask<T> b) __attribute__((always_inline)) { return a + b; },
      std::make_integer_sequence<int64_t, kLanes>());
}

// Cuts a full list, of more than k above `threshold`, to the k nearest, still in order of index, and returns a
// threshold that they reach and nothing that comes later need reach.
template <typename T>
T cut_list(const NeighborLists<T>& lists, int64_t query, T threshold) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  T* cosines = lists.cosines + query * lists.capacity;
  int64_t* indices = lists.indices + query * lists.capacity;
  Vec<T> largest = load(cosines);
  for (int64_t i = kLanes; i < lists.capacity; i += kLanes) {
    const Vec<T> x = load(cosines + i);
    largest = x > largest ? x : largest;
  }
  // More than k are above `low`, and `above`, at most k, above `high`. Where these have no number between them, what is
  // above the one and not above the other is equal.
  auto low = key_of(threshold), high = key_of(max_lanes<T>(largest));
  int64_t above = 0;
  while (above != lists.k && low + 1 < high) {
    const auto middle = (low & high) + ((low ^ high) >> 1);
    const int64_t count = count_above(cosines, lists.capacity, value_of<T>(middle));
    if (count > lists.k) {
      low = middle;
    } else {
      high = middle;
      above = count;
    }
  }
  const T limit = value_of<T>(high);
  int64_t kept = 0, equal = lists.k - above;  // of those that are equal the first are kept
  for (int64_t i = 0; i < lists.capacity; ++i) {
    const T cosine = cosines[i];
    const bool is_equal = (cosine == limit) & (equal > 0);
    cosines[kept] = cosine;
    indices[kept] = indices[i];
    kept += (cosine > limit) | is_equal;
    equal -= is_equal;
  }
  lists.found[query] = lists.k;
  return limit;
}

// Adds what is above the threshold of a query to its list, which is cut if it is full; returns whether it was. Later
// rows of the bank must be nearer than a threshold, for of equal ones the first wins.
template <typename T>
DEEPCLUST_INLINE bool take_score(const NeighborLists<T>& lists, int64_t query, T score, int64_t index, T& threshold) {
  if (!(score > threshold && lists.add(query, score, index))) return false;
  threshold = cut_list(lists, query, threshold);
  return true;
}

// Adds what a tile of scores holds above the thresholds of its queries to their lists.
template <int64_t kVectors, typename T>
DEEPCLUST_INLINE void take_survivors(const T* scores,       // (kPanelRows, kVectors) vectors
                                     const int64_t* index,  // (kPanelRows,) of the rows in the bank
                                     const NeighborLists<T>& lists, int64_t query,
                                     T* thresholds  // (kVectors,) vectors
) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kStride = kVectors * kLanes;
  for (int64_t column = 0; column < kStride; column += kLanes) {
    const Vec<T> threshold = load(thresholds + column);
    Mask<T> above = {};  // a bit for each row of the tile
#pragma GCC unroll 16
    for (int64_t r = 0; r < Tile<T>::kPanelRows; ++r) {
      above |= (load(scores + r * kStride + column) > threshold) & (1 << r);
    }
    uint32_t lanes = lane_bits<T>(above != 0);
    if (lanes == 0) continue;
    typename IntegerOf<T>::type rows[kLanes];
    store(rows, above);
    for (; lanes != 0; lanes &= lanes - 1) {
      const int64_t lane = __builtin_ctz(lanes), c = column + lane;
      for (auto bits = static_cast<uint32_t>(rows[lane]); bits != 0; bits &= bits - 1) {
        const int64_t r = __builtin_ctz(bits);
        take_score(lists, query + c, scores[r * kStride + c], index[r], thresholds[c]);
      }
    }
  }
}

// Compares rows of the bank with kVectors vectors of queries.
template <int64_t kVectors, typename T>
DEEPCLUST_INLINE void search_tile(const T* rows,         // (kPanelRows, block_stride(depth))
                                  const int64_t* index,  // (kPanelRows,) of the rows in the bank
                                  const T* panel,        // (depth, kPanelColumns)
                                  int64_t depth, const NeighborLists<T>& lists, int64_t query,
                                  T* thresholds  // (kVectors,) vectors
) {
  constexpr int64_t kStride = kVectors * VecOf<T>::kLanes;
  const T bias[kStride] = {};
  T scores[Tile<T>::kPanelRows * kStride];
  score_tile<kVectors>(rows, panel, bias, depth, scores, kStride);
  take_survivors<kVectors>(scores, index, lists, query, thresholds);
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

#include "neighbors/cpu/neighbor_filter.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Whether `count` queries are compared by integers first: half a panel of them is not.
template <typename T>
bool filters_scores(int64_t count, int64_t depth) {
  return std::is_same_v<T, float> && count > Tile<T>::kPanelColumns / 2 && depth >= kMinFilterDepth;
}

// Elements of T that search_slice needs for `count` queries.
template <typename T>
int64_t search_workspace(int64_t count, int64_t depth) {
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  const int64_t padded = round_up(count, kColumns);
  const int64_t normalized = filters_scores<T>(count, depth) ? QueryFilter::workspace(padded, depth) : kColumns * depth;
  return padded * (depth + 1) + (Tile<T>::kPanelRows + 1) * block_stride(depth) + normalized;
}

// Finds the nearest rows of the bank's slice [begin, end) to `count` queries. Returns false, with lists of no meaning,
// if a valid row is not finite.
template <typename Inputs, typename T = typename Inputs::Accumulation>
bool search_slice(const Inputs& in, int64_t first, int64_t count, int64_t begin, int64_t end,
                  const NeighborLists<T>& lists,
                  T* workspace  // (search_workspace<T>(...),)
) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  const int64_t depth = in.depth, stride = block_stride(depth);
  const int64_t padded = round_up(count, kColumns);
  T* panels = workspace;
  T* thresholds = panels + padded * depth;
  T* rows = thresholds + padded;
  T* zeros = rows + kRows * stride;
  T* normalized = zeros + stride;
  const bool filters = filters_scores<T>(count, depth);
  pack_queries(in.query + first * depth, count, depth, lists, panels, thresholds, zeros, normalized, filters);
  std::optional<QueryFilter> filter;
  if constexpr (std::is_same_v<T, float>) {
    if (filters) filter.emplace(panels, thresholds, padded, depth, normalized);
  }
  while (begin < end) {
    // A tile: the next valid rows, normalized.
    int64_t index[kRows];
    int64_t present = 0;
    for (; begin < end && present < kRows; ++begin) {
      if (in.valid != nullptr && !in.valid[begin]) continue;
      index[present++] = begin;
    }
    if (present == 0) break;
    if (!normalize_tile(in.bank, index, present, depth, rows)) return false;
    for (int64_t r = present; r < kRows; ++r) {  // what fills up the last tile is NaN, which no comparison picks
      for (int64_t k = 0; k < depth; ++k) rows[r * stride + k] = std::numeric_limits<T>::quiet_NaN();
    }
    const bool is_filtered = filter && present == kRows;
    if constexpr (std::is_same_v<T, float>) {
      if (is_filtered) filter->take_tile(rows);
    }
    for (int64_t query = 0; query < count; query += kColumns) {
      // A row of the next tile with each panel from the second on: spread out, they do not wait for each other. With
      // one panel the bank is a plain stream, which the processor foresees.
      if (query > 0 && query <= kRows * kColumns) prefetch_row(in.bank, begin + query / kColumns - 1, depth);
      const T* panel = panels + query * depth;
      if (count - query <= kColumns / 2) {
        search_tile<1>(rows, index, panel, depth, lists, query, thresholds + query);
      } else if (!is_filtered || !filter->take_panel(query)) {
        search_tile<2>(rows, index, panel, depth, lists, query, thresholds + query);
        if constexpr (std::is_same_v<T, float>) {
          if (is_filtered) filter->panel_was_scored(thresholds, query);
        }
      }
    }
    if constexpr (std::is_same_v<T, float>) {
      if (is_filtered) filter->settle(rows, index, lists, thresholds);
    }
  }
  return true;
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

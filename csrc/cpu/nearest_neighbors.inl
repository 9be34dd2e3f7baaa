// Kernels of nearest_neighbors; see nearest_neighbors.cpp. No include guard: compiled once per capability.

#include "common/rows.inl"
#include "common/tile_core.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Rows of the bank that are normalized together: a few tiles, so that a panel of queries is fetched for all of them.
template <typename T>
constexpr int64_t kGroupRows = 4 * Tile<T>::kPanelRows;

// Queries that are compared together: enough to make little of the normalizing of the bank, few enough for the cache.
template <typename T>
int64_t query_block_rows(int64_t depth) {
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  const int64_t rows = kMaxBlockElements / depth;
  return rows < kColumns ? kColumns : (rows > kMaxBlockRows ? kMaxBlockRows : rows) / kColumns * kColumns;
}

// Elements of T that search_slice needs for `count` queries.
template <typename T>
int64_t search_workspace(int64_t count, int64_t depth) {
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  const int64_t padded = (count + kColumns - 1) / kColumns * kColumns;
  return padded * (depth + 1) + (kColumns + kGroupRows<T> + 1) * block_stride(depth);
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

// Normalizes a row of any dtype; returns whether it is finite.
template <typename T, typename Source>
bool normalize_source(const Source* row, int64_t depth, T* normalized) {
  T inverse_norm;
  if constexpr (std::is_same_v<T, Source>) {
    return normalize_rows(row, 1, depth, true, normalized, &inverse_norm);
  } else {
    for (int64_t k = 0; k < depth; ++k) normalized[k] = static_cast<T>(row[k]);
    return normalize_rows(normalized, 1, depth, true, normalized, &inverse_norm);
  }
}

// Normalizes queries and packs them into panels, and starts their lists. Those that are not finite find nothing, nor do
// those that fill up the last panel: no score is above their thresholds.
template <typename T, typename Source>
void pack_queries(const Source* query,  // (count, depth)
                  int64_t count, int64_t depth, const NeighborLists<T>& lists,
                  T* panels,      // (padded / kPanelColumns, depth, kPanelColumns)
                  T* thresholds,  // (padded,)
                  T* memory       // (kPanelColumns + 1, block_stride(depth))
) {
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  T* shift = memory + kColumns * depth;
  for (int64_t k = 0; k < depth; ++k) shift[k] = T(0);
  for (int64_t first = 0; first < count; first += kColumns) {
    const int64_t present = count - first < kColumns ? count - first : kColumns;
    for (int64_t c = 0; c < kColumns; ++c) {
      T* row = memory + c * depth;
      const bool takes_part = c < present && normalize_source(query + (first + c) * depth, depth, row);
      thresholds[first + c] = (takes_part ? -1 : 1) * std::numeric_limits<T>::infinity();
      if (c < present) lists.start(first + c, takes_part);
      for (int64_t k = 0; k < depth && !takes_part; ++k) row[k] = T(0);
    }
    T squared_norm[kColumns];
    pack_columns(memory, depth, shift, 0, kColumns, depth, panels + first * depth, squared_norm);
  }
}

// Adds what a tile of scores holds above the thresholds of its queries to their lists. A list that is full is cut to
// the k nearest, the last of which is the threshold from then on: later rows of the bank must be nearer, for of equal
// ones the first wins.
template <int64_t kVectors, typename T>
DEEPCLUST_INLINE void take_survivors(const T* scores,       // (kPanelRows, kVectors) vectors
                                     const int64_t* index,  // (kPanelRows,) of the rows in the bank
                                     const NeighborLists<T>& lists, int64_t query,
                                     T* thresholds  // (kVectors,) vectors
) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  Mask<T> above = {};
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) {
      above |= load(scores + (r * kVectors + v) * kLanes) > load(thresholds + v * kLanes);
    }
  }
  if (!any_lane<T>(above)) return;
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kVectors; ++v, scores += kLanes) {
      uint32_t bits = lane_bits<T>(load(scores) > load(thresholds + v * kLanes));
      for (; bits != 0; bits &= bits - 1) {
        const int64_t lane = __builtin_ctz(bits), column = v * kLanes + lane;
        if (lists.add(query + column, {scores[lane], index[r]})) thresholds[column] = lists.cut(query + column);
      }
    }
  }
}

// Compares a group of rows of the bank with kVectors vectors of queries.
template <int64_t kVectors, typename T>
void search_group(const T* rows,         // (count rounded up to kPanelRows, block_stride(depth))
                  const int64_t* index,  // (count rounded up to kPanelRows,)
                  int64_t count,
                  const T* panel,  // (depth, kPanelColumns)
                  int64_t depth, const NeighborLists<T>& lists, int64_t query,
                  T* thresholds  // (kVectors,) vectors
) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  constexpr int64_t kStride = kVectors * VecOf<T>::kLanes;
  const T bias[kStride] = {};
  for (int64_t row = 0; row < count; row += kRows) {
    T scores[kRows * kStride];
    score_tile<kVectors>(rows + row * block_stride(depth), panel, bias, depth, scores, kStride);
    take_survivors<kVectors>(scores, index + row, lists, query, thresholds);
  }
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
  const int64_t padded = (count + kColumns - 1) / kColumns * kColumns;
  const int64_t stride = block_stride(in.depth);
  T* panels = workspace;
  T* thresholds = panels + padded * in.depth;
  T* rows = thresholds + padded;
  pack_queries(in.query + first * in.depth, count, in.depth, lists, panels, thresholds, rows);
  while (begin < end) {
    int64_t index[kGroupRows<T>];
    int64_t present = 0;
    for (; begin < end && present < kGroupRows<T>; ++begin) {
      prefetch_row(in.bank, begin + kGroupRows<T>, in.depth);  // for the next group, while this one is computed with
      if (in.valid != nullptr && !in.valid[begin]) continue;
      if (!normalize_source(in.bank + begin * in.depth, in.depth, rows + present * stride)) return false;
      index[present++] = begin;
    }
    for (int64_t r = present; r % kRows != 0; ++r) {  // rows of NaN, which no comparison picks, fill up the last tile
      for (int64_t k = 0; k < in.depth; ++k) rows[r * stride + k] = std::numeric_limits<T>::quiet_NaN();
    }
    for (int64_t query = 0; query < count; query += kColumns) {
      const T* panel = panels + query * in.depth;
      if (count - query > kColumns / 2) {
        search_group<2>(rows, index, present, panel, in.depth, lists, query, thresholds + query);
      } else {
        search_group<1>(rows, index, present, panel, in.depth, lists, query, thresholds + query);
      }
    }
  }
  return true;
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

// Kernels of nearest_neighbors; see nearest_neighbors.cpp. No include guard: compiled once per capability.

#include "common/rows.inl"
#include "common/tile_core.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Queries that are compared together: enough to make little of the packing of the bank, few enough for the cache.
template <typename T>
int64_t query_block_rows(int64_t depth) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  const int64_t rows = kMaxBlockElements / block_stride(depth);
  return rows < kRows ? kRows : (rows > kMaxBlockRows ? kMaxBlockRows : rows) / kRows * kRows;
}

// Elements of T that search_slice needs for `count` queries.
template <typename T>
int64_t search_workspace(int64_t count, int64_t depth) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  const int64_t padded = (count + kRows - 1) / kRows * kRows;
  return padded * block_stride(depth) + padded + (2 * kColumns + 1) * depth;
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
  for (int64_t k = 0; k < depth; ++k) normalized[k] = static_cast<T>(row[k]);
  T inverse_norm;
  return normalize_rows(normalized, 1, depth, true, normalized, &inverse_norm);
}

// Adds what a tile of scores holds above the thresholds of its rows to their lists. A list that is full is cut to the k
// nearest, the last of which is the threshold from then on: later rows of the bank must be nearer, for of equal ones
// the first wins.
template <typename T>
DEEPCLUST_INLINE void take_survivors(const T* scores,       // (kPanelRows, kPanelColumns)
                                     const int64_t* index,  // (kPanelColumns,) of the columns in the bank
                                     const NeighborLists<T>& lists, int64_t row,
                                     T* thresholds  // (kPanelRows,)
) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  for (int64_t r = 0; r < Tile<T>::kPanelRows; ++r, scores += kColumns) {
    const Vec<T> threshold = broadcast(thresholds[r]);
    for (int64_t begin = 0; begin < kColumns; begin += kLanes) {
      uint32_t above = lane_bits<T>(load(scores + begin) > threshold);
      for (; above != 0; above &= above - 1) {
        const int64_t column = begin + __builtin_ctz(above);
        if (lists.add(row + r, {scores[column], index[column]})) thresholds[r] = lists.cut(row + r);
      }
    }
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
  const int64_t padded = (count + kRows - 1) / kRows * kRows;
  const int64_t stride = block_stride(in.depth);
  T* block = workspace;
  T* thresholds = block + padded * stride;
  T* columns = thresholds + padded;
  T* panel = columns + kColumns * in.depth;
  T* shift = panel + kColumns * in.depth;
  for (int64_t k = 0; k < in.depth; ++k) shift[k] = T(0);
  for (int64_t r = 0; r < padded; ++r) {
    T* row = block + r * stride;
    const bool takes_part = r < count && normalize_source(in.query + (first + r) * in.depth, in.depth, row);
    thresholds[r] = (takes_part ? -1 : 1) * std::numeric_limits<T>::infinity();
    if (r < count) lists.start(r, takes_part);
    for (int64_t k = 0; k < in.depth && !takes_part; ++k) row[k] = T(0);
  }
  while (begin < end) {
    int64_t index[kColumns];
    int64_t present = 0;
    for (; begin < end && present < kColumns; ++begin) {
      prefetch_row(in.bank, begin + kColumns, in.depth);  // for the next panel, while this one is computed with
      if (in.valid != nullptr && !in.valid[begin]) continue;
      if (!normalize_source(in.bank + begin * in.depth, in.depth, columns + present * in.depth)) return false;
      index[present++] = begin;
    }
    if (present == 0) break;
    T bias[kColumns];
    pack_columns(columns, in.depth, shift, 0, present, in.depth, panel, bias);
    for (int64_t c = 0; c < kColumns; ++c) bias[c] = c < present ? T(0) : std::numeric_limits<T>::quiet_NaN();
    for (int64_t row = 0; row < count; row += kRows) {
      T scores[kRows * kColumns];
      score_tile<2>(block + row * stride, panel, bias, in.depth, scores, kColumns);
      take_survivors(scores, index, lists, row, thresholds + row);
    }
  }
  return true;
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

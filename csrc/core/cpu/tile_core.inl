// The CPU tile core: scores of a block of rows against all columns, for any op that compares every row with every
// column.
//
//     scores[r][j] = bias[j] + sum_k rows[r][k] * columns[j][k]
//
// Columns are packed once into panels of kPanelColumns, [panel][k][column]; rows are copied together block by block. A
// micro kernel keeps kPanelRows x kPanelColumns sums in registers over kChain elements, so every score is a sum of
// chains of fused multiply-adds over k = 0, 1, ...: its bits depend neither on its place in the tile nor on the number
// of threads, and equal columns get equal scores. Columns beyond the last are NaN, which no comparison picks.
//
// No include guard: compiled once per capability.

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

template <typename T>
struct Tile {
  static constexpr int64_t kPanelRows = DEEPCLUST_TILE_ROWS;
  static constexpr int64_t kPanelColumns = 2 * VecOf<T>::kLanes;
};

// Elements of a chain. Rounding errors grow with its length: with one chain, cosines of positive rows of 16384 elements
// are off by 4e-6 to 1.6e-4, where torch's product errs by 6e-7 and sums of chains by 3e-7.
constexpr int64_t kChain = 256;

template <typename T>
int64_t panel_rows() {
  return Tile<T>::kPanelRows;
}

template <typename T>
int64_t panel_columns() {
  return Tile<T>::kPanelColumns;
}

// Shuffles of vectors as rows of 128-bit parts, each of kPart lanes: what instructions do without a table.
template <typename T>
struct Parts {
  static constexpr int64_t kLanes = VecOf<T>::kLanes;
  static constexpr int64_t kPart = 16 / static_cast<int64_t>(sizeof(T));
  static constexpr int64_t kCount = kLanes / kPart;

  // Within each part, lanes of a and b in turn, first from their lower, then from their upper halves.
  template <int64_t... kLane>
  static DEEPCLUST_INLINE void interleave(Vec<T>& a, Vec<T>& b, std::integer_sequence<int64_t, kLane...>) {
    const Vec<T> low =
        __builtin_shufflevector(a, b, (kLane / kPart * kPart + kLane % kPart / 2 + kLane % 2 * kLanes)...);
    b = __builtin_shufflevector(a, b, (kLane / kPart * kPart + kLane % kPart / 2 + kPart / 2 + kLane % 2 * kLanes)...);
    a = low;
  }

  // The even parts of both, and the odd ones.
  template <int64_t... kLane>
  static DEEPCLUST_INLINE void separate(Vec<T>& a, Vec<T>& b, std::integer_sequence<int64_t, kLane...>) {
    const Vec<T> even = __builtin_shufflevector(a, b, (kLane / kPart * 2 * kPart + kLane % kPart)...);
    b = __builtin_shufflevector(a, b, ((kLane / kPart * 2 + 1) * kPart + kLane % kPart)...);
    a = even;
  }
};

// Transposes a square of kLanes vectors: first squares within the parts, then the parts.
template <typename T>
DEEPCLUST_INLINE void transpose(Vec<T> (&square)[VecOf<T>::kLanes]) {
  using P = Parts<T>;
  constexpr auto kLanes = std::make_integer_sequence<int64_t, P::kLanes>();
  Vec<T> moved[P::kLanes];
#pragma GCC unroll 4
  for (int64_t stage = 1; stage < P::kPart; stage *= 2) {
#pragma GCC unroll 16
    for (int64_t first = 0; first < P::kLanes; first += P::kPart) {
#pragma GCC unroll 2
      for (int64_t i = 0; i < P::kPart / 2; ++i) {
        moved[first + 2 * i] = square[first + i];
        moved[first + 2 * i + 1] = square[first + i + P::kPart / 2];
        P::interleave(moved[first + 2 * i], moved[first + 2 * i + 1], kLanes);
      }
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < P::kLanes; ++i) square[i] = moved[i];
  }
#pragma GCC unroll 2
  for (int64_t stage = 1; stage < P::kCount; stage *= 2) {
#pragma GCC unroll 4
    for (int64_t column = 0; column < P::kPart; ++column) {
#pragma GCC unroll 2
      for (int64_t i = 0; i < P::kCount / 2; ++i) {
        Vec<T>& even = moved[i * P::kPart + column];
        Vec<T>& odd = moved[(i + P::kCount / 2) * P::kPart + column];
        even = square[2 * i * P::kPart + column];
        odd = square[(2 * i + 1) * P::kPart + column];
        P::separate(even, odd, kLanes);
      }
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < P::kLanes; ++i) square[i] = moved[i];
  }
}

// Packs the panel of `columns` that starts at column `first`, less `shift`, and the squared norms of what it packs.
template <typename T>
void pack_columns(const T* columns,  // (count, depth) of leading dimension `stride`
                  int64_t stride,
                  const T* shift,  // (depth,)
                  int64_t first, int64_t count, int64_t depth,
                  T* panel,        // (depth, kPanelColumns)
                  T* squared_norm  // (kPanelColumns,)
) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  for (int64_t begin = 0; begin < kColumns; begin += kLanes) {
    const T* source[kLanes];  // the last column stands in for absent ones
    for (int64_t c = 0; c < kLanes; ++c) {
      const int64_t column = first + begin + c;
      source[c] = columns + (column < count ? column : count - 1) * stride;
    }
    Vec<T> squares = {};
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
      Vec<T> square[kLanes];
#pragma GCC unroll 16
      for (int64_t c = 0; c < kLanes; ++c) square[c] = load(source[c] + k) - load(shift + k);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        store(panel + (k + i) * kColumns + begin, square[i]);
        squares += square[i] * square[i];
      }
    }
    for (; k < depth; ++k) {
      T* to = panel + k * kColumns + begin;
      for (int64_t c = 0; c < kLanes; ++c) to[c] = source[c][k] - shift[k];
      squares += load(to) * load(to);
    }
    store(squared_norm + begin, squares);
  }
}

// Packs a panel less `shift`, and its bias -0.5 |column - shift|^2, with which a score is
// (|row - shift|^2 - |row - column|^2) / 2: the larger the score, the nearer the column.
template <typename T>
void pack_distance_columns(const T* columns,  // (count, depth)
                           const T* shift,    // (depth,)
                           int64_t first, int64_t count, int64_t depth,
                           T* panel,  // (depth, kPanelColumns)
                           T* bias    // (kPanelColumns,)
) {
  pack_columns(columns, depth, shift, first, count, depth, panel, bias);
  for (int64_t c = 0; c < Tile<T>::kPanelColumns; ++c) {
    bias[c] = first + c < count ? bias[c] * T(-0.5) : std::numeric_limits<T>::quiet_NaN();
  }
}

// Row stride of a packed block: off the powers of two, where the rows of a panel would share cache sets.
inline int64_t block_stride(int64_t depth) { return (depth + 31) / 16 * 16; }

// Copies the rows with the given indices, less `shift`, next to each other; fills up the last panel with zero rows.
template <typename T>
void pack_rows(const T* rows,         // (N, depth)
               const int64_t* index,  // (count,)
               const T* shift,        // (depth,)
               int64_t count, int64_t depth,
               T* block  // (count rounded up to kPanelRows, block_stride(depth))
) {
  const int64_t stride = block_stride(depth);
  for (int64_t r = 0; r < count; ++r) {
    const T* row = rows + index[r] * depth;
    for (int64_t k = 0; k < depth; ++k) block[r * stride + k] = row[k] - shift[k];
  }
  for (int64_t r = count; r % Tile<T>::kPanelRows != 0; ++r) {
    for (int64_t k = 0; k < depth; ++k) block[r * stride + k] = T(0);
  }
}

// sum[r] += rows[r] * columns over the depth, for kRows rows and kVectors vectors of columns; a transposed operand has
// its rows next to each other and the depth `row_stride` apart.
template <int64_t kRows, bool kTransposed, int64_t kVectors, typename T>
DEEPCLUST_INLINE void multiply_tile(const T* rows, int64_t row_stride,
                                    const T* columns,  // (depth, kVectors) vectors of leading dimension `column_stride`
                                    int64_t column_stride, int64_t depth, Vec<T> (&sum)[kRows][kVectors]) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> column[kVectors];
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) column[v] = load(columns + k * column_stride + v * kLanes);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      const Vec<T> row = broadcast(kTransposed ? rows[k * row_stride + r] : rows[r * row_stride + k]);
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sum[r][v] += row * column[v];
    }
  }
}

// Scores against the first kVectors vectors of columns of a panel.
template <int64_t kVectors, typename T>
DEEPCLUST_INLINE void score_tile(const T* rows,          // (kPanelRows, depth) of leading dimension block_stride(depth)
                                 const T* column_panel,  // (depth, kPanelColumns)
                                 const T* bias,          // (kPanelColumns,)
                                 int64_t depth,
                                 T* scores,  // (kPanelRows, kVectors) vectors of leading dimension `stride`
                                 int64_t stride) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kColumns = Tile<T>::kPanelColumns;
  for (int64_t first = 0; first < depth; first += kChain) {
    const int64_t length = depth - first < kChain ? depth - first : kChain;
    Vec<T> sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sum[r][v] = first == 0 ? load(bias + v * kLanes) : Vec<T>{};
    }
    multiply_tile<kRows, false, kVectors>(rows + first, block_stride(depth), column_panel + first * kColumns, kColumns,
                                          length, sum);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        T* score = scores + r * stride + v * kLanes;
        store(score, first == 0 ? sum[r][v] : load(score) + sum[r][v]);
      }
    }
  }
}

// Scores of packed rows against the packed columns [begin, end): begin a multiple of kPanelColumns, end one of
// kPanelColumns or of half that.
template <typename T>
void score_columns(const T* block,          // (count rounded up to kPanelRows, block_stride(depth))
                   const T* column_panels,  // (padded / kPanelColumns, depth, kPanelColumns)
                   const T* bias,           // (padded,)
                   int64_t count, int64_t begin, int64_t end, int64_t depth,
                   T* scores,  // (count rounded up to kPanelRows, stride)
                   int64_t stride) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  const auto score_panel = [&](auto vectors, int64_t column) __attribute__((always_inline)) {
    for (int64_t row = 0; row < count; row += kRows) {
      score_tile<decltype(vectors)::value>(block + row * block_stride(depth), column_panels + column * depth,
                                           bias + column, depth, scores + row * stride + column, stride);
    }
  };
  int64_t column = begin;
  for (; column + Tile<T>::kPanelColumns <= end; column += Tile<T>::kPanelColumns) {
    score_panel(std::integral_constant<int64_t, 2>(), column);
  }
  if (column < end) score_panel(std::integral_constant<int64_t, 1>(), column);
}

// target += weights * columns for kRows rows.
template <int64_t kRows, bool kTransposed, typename T>
DEEPCLUST_INLINE void add_weighted_rows(const T* weights, int64_t weight_stride, const T* columns,
                                        int64_t column_stride, int64_t depth, int64_t width, T* target,
                                        int64_t target_stride) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  for (int64_t column = 0; column < width; column += Tile<T>::kPanelColumns) {
    Vec<T> sum[kRows][2];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      sum[r][0] = load(target + r * target_stride + column);
      sum[r][1] = load(target + r * target_stride + column + kLanes);
    }
    multiply_tile<kRows, kTransposed, 2>(weights, weight_stride, columns + column, column_stride, depth, sum);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      store(target + r * target_stride + column, sum[r][0]);
      store(target + r * target_stride + column + kLanes, sum[r][1]);
    }
  }
}

// target += weights * columns, or transposed weights * columns: `count` rows, each the sum of `depth` rows of
// `columns`.
template <bool kTransposed, typename T>
void add_product(const T* weights,  // (count, depth), transposed (depth, count), of leading dimension `weight_stride`
                 int64_t weight_stride,
                 const T* columns,  // (depth, width) of leading dimension `column_stride`
                 int64_t column_stride, int64_t count, int64_t depth,
                 int64_t width,  // a multiple of kPanelColumns
                 T* target,      // (count, width) of leading dimension `target_stride`
                 int64_t target_stride) {
  constexpr int64_t kRows = Tile<T>::kPanelRows;
  const int64_t step = kTransposed ? 1 : weight_stride;
  int64_t r = 0;
  for (; r + kRows <= count; r += kRows) {
    add_weighted_rows<kRows, kTransposed>(weights + r * step, weight_stride, columns, column_stride, depth, width,
                                          target + r * target_stride, target_stride);
  }
  for (; r < count; ++r) {
    add_weighted_rows<1, kTransposed>(weights + r * step, weight_stride, columns, column_stride, depth, width,
                                      target + r * target_stride, target_stride);
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

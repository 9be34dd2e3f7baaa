// Kernels of the contrastive loss for one capability; driven by fused_contrastive_loss.cpp, which explains the method.
// No include guard: compiled once per capability.
#include "core/cpu/rows.inl"
#include "core/cpu/tile_core.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Writes a row [z / |z|, c * class_scale, 0 ...] of `stride` elements and returns its squared norm, infinite
// if an element is not finite.
template <typename T>
T pack_features(const T* z,             // (dims,)
                const T* class_vector,  // (classes,)
                int64_t dims, int64_t classes, int64_t stride, bool normalize, T class_scale,
                T* row,          // (stride,)
                T* inverse_norm  // ()
) {
  const bool finite = normalize_rows(z, 1, dims, normalize, row, inverse_norm);
  if (!normalize) std::copy(z, z + dims, row);
  for (int64_t k = 0; k < classes; ++k) row[dims + k] = class_vector[k] * class_scale;
  for (int64_t k = dims + classes; k < stride; ++k) row[k] = T(0);
  const T squares = sum_terms<T>(
      stride, [&](int64_t k) __attribute__((always_inline)) { return load(row + k) * load(row + k); },
      [&](int64_t k) __attribute__((always_inline)) { return row[k] * row[k]; });
  return finite && squares <= std::numeric_limits<T>::max() ? squares : std::numeric_limits<T>::infinity();
}

// Writes the row that pack_features wrote, from the inverse norm that it found.
template <typename T>
void repack_features(const T* z,             // (dims,)
                     const T* class_vector,  // (classes,)
                     int64_t dims, int64_t classes, int64_t stride, T inverse_norm, T class_scale,
                     T* row  // (stride,)
) {
  for (int64_t k = 0; k < dims; ++k) row[k] = z[k] * inverse_norm;
  for (int64_t k = 0; k < classes; ++k) row[dims + k] = class_vector[k] * class_scale;
  for (int64_t k = dims + classes; k < stride; ++k) row[k] = T(0);
}

// Packs a panel of columns from packed rows; the bias is -inf for absent columns.
template <typename T>
void pack_panel(const T* rows,  // (count, stride)
                int64_t first, int64_t count, int64_t depth, int64_t stride,
                const T* zeros,  // (depth,)
                T* panel,        // (depth, kPanelColumns)
                T* bias          // (kPanelColumns,)
) {
  pack_columns(rows, stride, zeros, first, count, depth, panel, bias);
  for (int64_t c = 0; c < Tile<T>::kPanelColumns; ++c) {
    bias[c] = first + c < count ? T(0) : -std::numeric_limits<T>::infinity();
  }
}

// The scores of one tile: rows row ... row + rows - 1 against columns column ... column + columns - 1.
template <typename T>
struct ContrastiveTile {
  alignas(64) T scores[(kTileRows + Tile<T>::kPanelRows) * kTileColumns];
  int64_t row, rows, column, columns;
  int64_t padded;  // columns rounded up to whole panels

  ContrastiveTile(const PackedContrastive<T>& in, const BlockPair& pair, const T* pair_rows)
      : row(pair.row),
        rows(pair.rows),
        column(pair.column),
        columns(pair.columns),
        padded(round_up(columns, Tile<T>::kPanelColumns)) {
    score_columns(pair_rows, in.column_panels + column * in.depth, in.column_bias + column, rows, 0, padded, in.depth,
                  scores, kTileColumns);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < padded; c += VecOf<T>::kLanes) {
        T* at = scores + r * kTileColumns + c;
        store(at, load(at) * in.score_scale);
      }
    }
  }

  // Calls use(r, c) for every row r of the tile with its positive in column c, and takes pairs that are no negatives
  // out.
  template <typename Use>
  void take_out_positives(const PackedContrastive<T>& in, const Use& use) {
    if (!in.two_views) return;
    const int64_t half = in.count / 2;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t own = row + r;
      const int64_t c = (own < half ? own + half : own - half) - column;
      if (c >= 0 && c < columns) {
        use(r, c);
        scores[r * kTileColumns + c] = -std::numeric_limits<T>::infinity();
      }
      const int64_t self = own - column;
      if (self >= 0 && self < columns) scores[r * kTileColumns + self] = -std::numeric_limits<T>::infinity();
    }
  }
};

// Sums over the tile of exp((1 + hardness) (s - shift)) and, if kWeighted, exp(hardness (s - shift)), by rows, by
// columns or both; shift(r, c) gives it for the lanes from column c on. If kKeep, the exponentials take the place of
// the scores, and those of the weights go to `weights`.
template <bool kWeighted, bool kByRows, bool kByColumns, bool kKeep = false, typename T, typename Shift>
void sum_exponentials(ContrastiveTile<T>& tile, T hardness, const Shift& shift,
                      T* by_row,            // (2, kTileRows) overwritten
                      T* by_column,         // (2, kTileColumns) overwritten
                      T* weights = nullptr  // (kTileRows, kTileColumns) overwritten
) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  if (kByColumns) {
    for (int64_t c = 0; c < 2 * kTileColumns; c += kLanes) store(by_column + c, Vec<T>{});
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    Vec<T> sum[2] = {};
    for (int64_t c = 0; c < tile.padded; c += kLanes) {
      const Vec<T> score = load(tile.scores + r * kTileColumns + c) - shift(r, c);
      Vec<T> value = exponential<T>(score);
      if constexpr (kWeighted) {
        const Vec<T> weight = exponential<T>(score * hardness);
        value *= weight;
        if (kKeep) store(weights + r * kTileColumns + c, weight);
        if (kByRows) sum[1] += weight;
        if (kByColumns) store(by_column + kTileColumns + c, load(by_column + kTileColumns + c) + weight);
      }
      if (kKeep) store(tile.scores + r * kTileColumns + c, value);
      if (kByRows) sum[0] += value;
      if (kByColumns) store(by_column + c, load(by_column + c) + value);
    }
    if (kByRows) {
      by_row[r] = sum_lanes<T>(sum[0]);
      if (kWeighted) by_row[kTileRows + r] = sum_lanes<T>(sum[1]);
    }
  }
}

// Adds sums of exp((1 + hardness) (s - shift)) and exp(hardness (s - shift)) to the sums of an anchor, which has a
// shift of its own: the larger of both shifts stays, and the sums of the other are scaled to it.
template <typename T>
void add_to_anchor(const PackedContrastive<T>& in, T shift, double sum, double weight_sum, LogSums<T>& total) {
  if (sum == 0 && weight_sum == 0) return;  // nothing to add; the shift may have no meaning
  if (shift > total.shift) {
    const double change = total.shift > -std::numeric_limits<T>::infinity() ? double(total.shift) - shift : 0.0;
    total.sum *= std::exp((1.0 + in.hardness) * change);
    total.weight_sum *= std::exp(in.hardness * change);
    total.shift = shift;
  } else if (shift < total.shift) {
    const double change = double(shift) - total.shift;
    sum *= std::exp((1.0 + in.hardness) * change);
    weight_sum *= std::exp(in.hardness * change);
  }
  total.sum += sum;
  total.weight_sum += weight_sum;
}

// Scales the kept rows of an anchor, which are rows times exponentials, from one shift of the exponentials to another.
template <typename T>
void rescale_kept(const PackedContrastive<T>& in, T from, T to, const KeptRows<T>& kept, int64_t anchor) {
  T* rows[2] = {kept.sum, kept.weight_sum};
  for (int which = 0; which < 2; ++which) {
    if (rows[which] == nullptr || from == to) continue;
    const double growth = which == 0 ? 1.0 + in.hardness : double(in.hardness);
    const T factor = from == -std::numeric_limits<T>::infinity() ? T(0) : std::exp(growth * (double(from) - to));
    for (int64_t k = anchor * in.stride; k < (anchor + 1) * in.stride; ++k) rows[which][k] *= factor;
  }
}

// sum_tile with and without hardness. A score serves two anchors: the row of the tile, and its column. Their sums of
// exponentials are taken relative to a shift: one bound for all scores where there is one, and otherwise the largest
// score of each anchor so far.
template <bool kWeighted, typename T>
void sum_tile_as(const PackedContrastive<T>& in, const BlockPair& pair, const T* pair_rows, LogSums<T>* row_sums,
                 LogSums<T>* column_sums, T* positive, const KeptRows<T>& kept) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  // Step 1: the scores of the tile. Scores of positives are stored in `positive`. They, and those of rows with
  // themselves, are set to -infinity, so that they are in no sum.
  ContrastiveTile<T> tile(in, pair, pair_rows);
  tile.take_out_positives(in, [&](int64_t r, int64_t c) {
    positive[tile.row + r] = tile.scores[r * kTileColumns + c];
    positive[tile.column + c] = tile.scores[r * kTileColumns + c];
  });
  const T hardness = in.hardness;
  T by_row[2 * kTileRows];
  T by_column[2 * kTileColumns];
  alignas(64) T weights[kWeighted ? kTileRows * kTileColumns : 1];
  // Sums of exponentials for the anchors in columns. If rows are kept (for a queue that needs no gradient), also sums
  // of rows times exponentials, which become the anchors' gradient.
  const auto sum_columns = [&](const auto& shift) {
    if (kept.sum == nullptr) {
      sum_exponentials<kWeighted, false, true>(tile, hardness, shift, by_row, by_column);
      return;
    }
    sum_exponentials<kWeighted, false, true, true>(tile, hardness, shift, by_row, by_column, weights);
    const int64_t width = in.stride / Tile<T>::kPanelColumns * Tile<T>::kPanelColumns;
    add_product<true>(tile.scores, kTileColumns, pair_rows, in.stride, tile.columns, tile.rows, width, kept.sum,
                      in.stride);
    if constexpr (kWeighted) {
      add_product<true>(weights, kTileColumns, pair_rows, in.stride, tile.columns, tile.rows, width, kept.weight_sum,
                        in.stride);
    }
  };
  // Step 2, if one bound holds for all scores: exponentials relative to it. Each is computed once, and serves the
  // anchor in its row and the one in its column.
  if (in.bounded) {
    const auto shift = [&](int64_t, int64_t) __attribute__((always_inline)) { return broadcast(in.bound); };
    if (pair.for_rows && pair.for_columns) {
      sum_exponentials<kWeighted, true, true>(tile, hardness, shift, by_row, by_column);
    } else if (pair.for_rows) {
      sum_exponentials<kWeighted, true, false>(tile, hardness, shift, by_row, by_column);
    } else {
      sum_columns(shift);
    }
    // They are added to the anchors' sums over negatives of exp((1 + hardness) s) and exp(hardness s).
    for (int64_t r = 0; pair.for_rows && r < tile.rows; ++r) {
      add_to_anchor(in, in.bound, by_row[r], kWeighted ? by_row[kTileRows + r] : T(0), row_sums[r]);
    }
    for (int64_t c = 0; pair.for_columns && c < tile.columns; ++c) {
      add_to_anchor(in, in.bound, by_column[c], kWeighted ? by_column[kTileColumns + c] : T(0), column_sums[c]);
    }
    return;
  }
  T shift[kTileRows > kTileColumns ? kTileRows : kTileColumns];
  // Step 2, without such a bound, for the anchors in rows: their shift is the largest score so far.
  for (int64_t r = 0; pair.for_rows && r < tile.rows; ++r) {
    Vec<T> largest = broadcast(row_sums[r].shift);
    for (int64_t c = 0; c < tile.padded; c += kLanes) {
      const Vec<T> score = load(tile.scores + r * kTileColumns + c);
      largest = score > largest ? score : largest;
    }
    const T own = max_lanes<T>(largest);
    shift[r] = own == -kInfinity ? T(0) : own;  // -infinity: the anchor has had no negative so far
  }
  // Their sums, relative to that shift.
  if (pair.for_rows) {
    sum_exponentials<kWeighted, true, false>(
        tile, hardness, [&](int64_t r, int64_t) __attribute__((always_inline)) { return broadcast(shift[r]); }, by_row,
        by_column);
  }
  for (int64_t r = 0; pair.for_rows && r < tile.rows; ++r) {
    add_to_anchor(in, shift[r], by_row[r], kWeighted ? by_row[kTileRows + r] : T(0), row_sums[r]);
  }
  if (!pair.for_columns) return;
  // Step 3, without such a bound, for the anchors in columns: their exponentials have another shift, so they are
  // computed again. First the shift, the largest score so far.
  for (int64_t c = 0; c < tile.padded; ++c) {
    shift[c] = c < tile.columns ? column_sums[c].shift : T(0);
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t c = 0; c < tile.padded; c += kLanes) {
      const Vec<T> score = load(tile.scores + r * kTileColumns + c);
      const Vec<T> largest = load(shift + c);
      store(shift + c, score > largest ? score : largest);
    }
  }
  for (int64_t c = 0; c < tile.padded; ++c) shift[c] = shift[c] == -kInfinity ? T(0) : shift[c];
  // Kept rows are scaled from the old shift to the new one.
  for (int64_t c = 0; c < tile.columns; ++c) rescale_kept(in, column_sums[c].shift, shift[c], kept, c);
  // Then their sums.
  sum_columns([&](int64_t, int64_t c) __attribute__((always_inline)) { return load(shift + c); });
  for (int64_t c = 0; c < tile.columns; ++c) {
    add_to_anchor(in, shift[c], by_column[c], kWeighted ? by_column[kTileColumns + c] : T(0), column_sums[c]);
  }
}

// Adds the exponentials of a tile to the sums of the anchors in its rows, its columns or both, as `pair` says, and
// stores the scores of positives.
template <typename T>
void sum_tile(const PackedContrastive<T>& in, const BlockPair& pair,
              const T* pair_rows,       // (pair.rows and a panel more, stride)
              LogSums<T>* row_sums,     // (pair.rows,)
              LogSums<T>* column_sums,  // (pair.columns,)
              T* positive,              // (anchors,)
              const KeptRows<T>& kept   // (pair.columns, stride) each; of pairs for columns alone
) {
  if (in.hardness > 0) {
    sum_tile_as<true>(in, pair, pair_rows, row_sums, column_sums, positive, kept);
  } else {
    sum_tile_as<false>(in, pair, pair_rows, row_sums, column_sums, positive, kept);
  }
}

// Adds the sums of a part to those of an anchor, and what is kept of it.
template <typename T>
void add_sums(const PackedContrastive<T>& in, const LogSums<T>& part, const KeptRows<T>& part_kept, int64_t part_anchor,
              LogSums<T>& total, const KeptRows<T>& kept, int64_t anchor) {
  if (part.sum == 0 && part.weight_sum == 0) return;
  const T shift = part.shift > total.shift ? part.shift : total.shift;
  rescale_kept(in, total.shift, shift, kept, anchor);
  rescale_kept(in, part.shift, shift, part_kept, part_anchor);
  T* to[2] = {kept.sum, kept.weight_sum};
  const T* from[2] = {part_kept.sum, part_kept.weight_sum};
  for (int which = 0; which < 2; ++which) {
    for (int64_t k = 0; to[which] != nullptr && k < in.stride; ++k) {
      to[which][anchor * in.stride + k] += from[which][part_anchor * in.stride + k];
    }
  }
  add_to_anchor(in, part.shift, part.sum, part.weight_sum, total);
}

// What the anchors at the lanes of a score add to its weight.
template <bool kWeighted, typename T>
DEEPCLUST_INLINE Vec<T> anchor_weight(const Vec<T>& difference, T hardness, const Vec<T>& slope,
                                      const Vec<T>& weight_slope) {
  const Vec<T> value = slope * exponential<T>(difference * (1 + hardness));
  if constexpr (kWeighted) return value - weight_slope * exponential<T>(difference * hardness);
  return value;
}

// Turns the scores of a tile into the derivatives of the loss by them. Columns are anchors always, rows if they have
// values.
template <bool kWeighted, typename T>
void weigh_scores(const PackedContrastive<T>& in, const AnchorValues<T>& of_rows, const AnchorValues<T>& of_columns,
                  ContrastiveTile<T>& tile) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const T hardness = in.hardness;
  const auto at_column = [&](const T* values, T* copy) {  // 0 where absent
    std::fill(copy, copy + kTileColumns, T(0));
    std::copy(values + tile.column, values + tile.column + tile.columns, copy);
  };
  T slope[kTileColumns], weight_slope[kTileColumns], shift[kTileColumns];
  at_column(of_columns.slope, slope);
  at_column(of_columns.weight_slope, weight_slope);
  at_column(of_columns.shift, shift);
  const bool both = of_rows.slope != nullptr;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const auto at_row = [&](const T* values)
                            __attribute__((always_inline)) { return broadcast(both ? values[tile.row + r] : T(0)); };
    const Vec<T> own_slope = at_row(of_rows.slope), own_weight_slope = at_row(of_rows.weight_slope);
    const Vec<T> own_shift = at_row(of_rows.shift);
    for (int64_t c = 0; c < tile.padded; c += kLanes) {
      T* at = tile.scores + r * kTileColumns + c;
      const Vec<T> score = load(at);
      if (in.bounded) {  // one exponential serves both anchors
        const Vec<T> difference = score - in.bound;
        Vec<T> value = exponential<T>(difference);
        Vec<T> weight = {};
        if constexpr (kWeighted) {
          const Vec<T> softer = exponential<T>(difference * hardness);
          value *= softer;
          weight = softer * (own_weight_slope + load(weight_slope + c));
        }
        store(at, value * (own_slope + load(slope + c)) - weight);
      } else {
        Vec<T> weight =
            anchor_weight<kWeighted, T>(score - load(shift + c), hardness, load(slope + c), load(weight_slope + c));
        if (both) {
          weight += anchor_weight<kWeighted, T>(score - own_shift, hardness, own_slope, own_weight_slope);
        }
        store(at, weight);
      }
    }
  }
}

// Adds the derivatives of the loss through a tile's scores to the gradients that the pair is for.
template <typename T>
void add_gradients(const PackedContrastive<T>& in,
                   const AnchorValues<T>& of_rows,  // null where rows are no anchors
                   const AnchorValues<T>& of_columns, const BlockPair& pair,
                   const T* pair_rows,  // (pair.rows and a panel more, stride)
                   T* row_gradient,     // (pair.rows, stride)
                   T* column_gradient   // (pair.columns, stride)
) {
  ContrastiveTile<T> tile(in, pair, pair_rows);
  struct Positive {
    int64_t r, c;
  };
  Positive positives[kTileRows];
  int64_t found = 0;
  tile.take_out_positives(in, [&](int64_t r, int64_t c) { positives[found++] = {r, c}; });
  if (in.hardness > 0) {
    weigh_scores<true>(in, of_rows, of_columns, tile);
  } else {
    weigh_scores<false>(in, of_rows, of_columns, tile);
  }
  for (int64_t i = 0; i < found; ++i) {
    const auto [r, c] = positives[i];
    tile.scores[r * kTileColumns + c] =
        of_rows.positive_slope[tile.row + r] + of_columns.positive_slope[tile.column + c];
  }
  const int64_t width = in.stride / Tile<T>::kPanelColumns * Tile<T>::kPanelColumns;
  if (pair.for_rows) {
    add_product<false>(tile.scores, kTileColumns, in.column_rows + tile.column * in.stride, in.stride, tile.rows,
                       tile.columns, width, row_gradient, in.stride);
  }
  if (pair.for_columns) {
    add_product<true>(tile.scores, kTileColumns, pair_rows, in.stride, tile.columns, tile.rows, width, column_gradient,
                      in.stride);
  }
}

// Scores of the rows of two packed matrices, pair by pair.
template <typename T>
void score_pairs(const T* first,   // (count, stride)
                 const T* second,  // (count, stride)
                 int64_t count, int64_t stride, T score_scale,
                 T* scores  // (count,)
) {
  for (int64_t r = 0; r < count; ++r, first += stride, second += stride) {
    scores[r] =
        score_scale * sum_terms<T>(
                          stride,
                          [&](int64_t k) __attribute__((always_inline)) { return load(first + k) * load(second + k); },
                          [&](int64_t k) __attribute__((always_inline)) { return first[k] * second[k]; });
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

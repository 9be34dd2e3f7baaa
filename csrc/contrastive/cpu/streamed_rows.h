// Rows that are compared with columns of another kind. Columns, which are anchors, are packed as a whole. Rows, which
// may be many more, are packed block by block. Included after the kernels of fused_contrastive_loss.inl.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "contrastive/cpu/block_pairs.h"
#include "contrastive/cpu/contrastive_problem.h"
#include "contrastive/cpu/packed_rows.h"
#include "core/cpu/scratch.h"

namespace deepclust {
namespace {

template <typename T>
class StreamedRows {
 public:
  StreamedRows(std::vector<Source> columns, std::vector<Source> rows, const Options& options)
      : columns_(std::move(columns), options, Keep::kRowsAndPanels),
        rows_(std::move(rows), options, Keep::kNorms),
        in_(packed_contrastive(columns_, rows_, false, options.loss)) {}

  const PackedContrastive<T>& packed() const { return in_; }
  const PackedRows<T>& columns() const { return columns_; }
  const PackedRows<T>& rows() const { return rows_; }

  // Adds the exponentials of all scores to the sums of the columns and, if there are such, of the rows, and to what is
  // kept of the rows.
  void sum(LogSums<T>* row_sums,     // (rows,) or null
           LogSums<T>* column_sums,  // (columns,)
           const KeptRows<T>& kept   // (columns, stride) each; not with sums of rows
  ) const {
    const int64_t group = std::min(columns_.count(), kGroupColumns);
    const int64_t chunks = count_chunks(in_.count);
    const int64_t stride = in_.stride;
    const int64_t size = kept.sum == nullptr ? 0 : group * stride, weight_size = kept.weight_sum == nullptr ? 0 : size;
    std::vector<LogSums<T>> by_chunk(chunks * group);  // (chunks, columns of a group)
    Scratch<T> scratch(chunks * (size + weight_size));
    T* memory = scratch.take(chunks * (size + weight_size));
    const auto kept_of = [&](int64_t index, int64_t column) {  // of a chunk, from a column of the group on
      T* own = memory + index * (size + weight_size);
      return KeptRows<T>{size > 0 ? own + column * stride : nullptr,
                         weight_size > 0 ? own + size + column * stride : nullptr};
    };
    const auto task = [&](const Chunk& chunk) {
      LogSums<T>* own = by_chunk.data() + chunk.index * group;
      std::fill(own, own + group, LogSums<T>());  // of the group before
      std::fill(memory + chunk.index * (size + weight_size), memory + (chunk.index + 1) * (size + weight_size), T(0));
      for_each_pair_in(chunk, [&](BlockPair pair, const T* rows) {
        pair.for_rows = row_sums != nullptr;
        const int64_t column = pair.column - chunk.column;
        DEEPCLUST_SELECT(sum_tile<T>)(in_, pair, rows, pair.for_rows ? row_sums + pair.row : nullptr, own + column,
                                      nullptr, kept_of(chunk.index, column));
      });
    };
    for_each_chunk(in_.count, columns_.count(), task, [&](int64_t column, int64_t columns) {
      at::parallel_for(0, columns, 16, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          for (int64_t i = 0; i < chunks; ++i) {
            DEEPCLUST_SELECT(add_sums<T>)(in_, by_chunk[i * group + c], kept_of(i, 0), c, column_sums[column + c], kept,
                                          column + c);
          }
        }
      });
    });
  }

  // Adds what the scores give to the gradients of the packed rows and columns that are wanted.
  void add_gradients(const AnchorValues<T>& of_rows,  // null where rows are no anchors
                     const AnchorValues<T>& of_columns, bool want_rows, bool want_columns,
                     T* by_row,    // (rows, stride)
                     T* by_column  // (columns, stride)
  ) const {
    const int64_t columns = columns_.count();
    const int64_t group = std::min(columns, kGroupColumns) * in_.stride;
    const int64_t chunks = count_chunks(in_.count);
    Scratch<T> scratch(chunks * group);
    T* by_chunk = scratch.take(chunks * group);  // (chunks, columns of a group, stride)
    const auto task = [&](const Chunk& chunk) {
      T* own = by_chunk + chunk.index * group;
      std::fill(own, own + group, T(0));
      for_each_pair_in(chunk, [&](BlockPair pair, const T* rows) {
        pair.for_rows = want_rows;
        pair.for_columns = want_columns;
        DEEPCLUST_SELECT(add_gradients<T>)(in_, of_rows, of_columns, pair, rows, by_row + pair.row * in_.stride,
                                           own + (pair.column - chunk.column) * in_.stride);
      });
    };
    for_each_chunk(in_.count, columns, task, [&](int64_t column, int64_t count) {
      at::parallel_for(column * in_.stride, (column + count) * in_.stride, 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = 0; i < chunks; ++i) {
          const T* from = by_chunk + i * group - column * in_.stride;
          for (int64_t k = begin; k < end; ++k) by_column[k] += from[k];
        }
      });
    });
  }

 private:
  // Calls use(pair, rows of the pair) for all pairs of blocks of a chunk.
  template <typename Use>
  void for_each_pair_in(const Chunk& chunk, const Use& use) const {
    const int64_t size = (kTileRows + DEEPCLUST_SELECT(panel_rows<T>)()) * in_.stride;  // the last row panel is full
    Scratch<T> scratch(size);
    T* block = scratch.take(size);
    std::fill(block, block + size, T(0));
    for (int64_t row = chunk.row; row < chunk.row + chunk.rows; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, chunk.row + chunk.rows - row);
      rows_.pack_block(row, rows, block);
      for (int64_t c = 0; c < chunk.columns; c += kTileColumns) {
        use(BlockPair{row, rows, chunk.column + c, std::min(kTileColumns, chunk.columns - c)}, block);
      }
    }
  }

  PackedRows<T> columns_, rows_;
  PackedContrastive<T> in_;
};

}  // namespace
}  // namespace deepclust

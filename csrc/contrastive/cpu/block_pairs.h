// All pairs of blocks of rows, in parallel, for kernels that add to something of both blocks of a pair.
//
// Tasks that share a block must not run at once, and what a block adds up must not depend on who was first. So pairs
// are taken in rounds of disjoint ones, as in a round-robin tournament: a block meets its partners in one order,
// whatever the number of threads. Of rows that are compared with columns of another kind, chunks run at once instead,
// which add to the columns apart.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "core/host_device.h"

namespace deepclust {

// Rows and columns of a block, and so of a tile of scores: whole panels of columns, and 16 KB of float32, half of a
// common first cache.
constexpr int64_t kTileRows = 64, kTileColumns = 64;
// Up to so many rows blocks are small: two blocks of 64 would be one task or two at a time. With 256 rows, blocks of
// either size take the same time.
constexpr int64_t kFewRows = 128;
constexpr int64_t kSmallBlock = 32;  // the columns of the widest panel, and so a multiple of those of all
// Columns that all rows are compared with before the next ones, in for_each_chunk(). A block of rows is packed for so
// many at a time; what a chunk adds to them, 128 KB of float32 for D = 128, stays in a common second cache.
constexpr int64_t kGroupColumns = 256;
// Chunks at most: so many threads have work, and memory is bounded by what so many add to the columns of a group.
constexpr int64_t kMaxChunks = 32;
// Rows of a chunk at least, about: four blocks are worth the merge of what they add to the columns.
constexpr int64_t kLeastChunkRows = 256;

// Two blocks to be compared, and for which of them; a block compared with itself counts as rows alone.
struct BlockPair {
  int64_t row, rows, column, columns;
  bool for_rows = true, for_columns = true;
};

// Calls task(pair) for every unordered pair of blocks of the same rows. Pairs that run at once never share a block.
template <typename Task>
void for_each_pair(int64_t rows, const Task& task) {
  const int64_t block = rows <= kFewRows ? kSmallBlock : kTileRows;
  const int64_t blocks = divide_up(rows, block);
  const auto run = [&](int64_t i, int64_t j) {
    const int64_t row = i * block, column = j * block;
    task(BlockPair{row, std::min(block, rows - row), column, std::min(block, rows - column), true, i != j});
  };
  // Blocks i and j meet in round (i + j) mod `odd`. The block that would meet itself meets the last one, if their
  // number is even, or else itself; an even number leaves a round in which every block meets itself.
  const int64_t odd = blocks % 2 == 1 ? blocks : blocks - 1;
  for (int64_t round = 0; round < blocks; ++round) {
    const bool all_alone = round == odd;
    const int64_t alone = round * ((odd + 1) / 2) % odd;
    at::parallel_for(0, all_alone ? blocks : (odd + 1) / 2, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        if (all_alone) {
          run(t, t);
        } else if (t == 0) {
          run(alone, odd == blocks ? alone : odd);
        } else {
          const int64_t i = (alone + t) % odd, j = (alone + odd - t) % odd;
          run(std::min(i, j), std::max(i, j));
        }
      }
    });
  }
}

// Some rows to be compared with some columns; `index` counts the chunks that run at once.
struct Chunk {
  int64_t index, row, rows, column, columns;
};

// Rows of every chunk but the last, whole blocks, and the number of chunks. Both depend on the number of rows alone, so
// that sums by chunk do not depend on the number of threads.
inline int64_t chunk_rows(int64_t rows) {
  const int64_t chunks = std::clamp<int64_t>(rows / kLeastChunkRows, 1, kMaxChunks);
  return std::max<int64_t>(divide_up(rows, chunks * kTileRows), 1) * kTileRows;
}
inline int64_t count_chunks(int64_t rows) { return divide_up(rows, chunk_rows(rows)); }

// Calls task(chunk) until all rows have been compared with all columns: groups of columns one after the other, chunks
// of rows at once. What chunks add to columns they keep by index until merge(column, columns), at the end of a group.
template <typename Task, typename Merge>
void for_each_chunk(int64_t rows, int64_t columns, const Task& task, const Merge& merge) {
  const int64_t size = chunk_rows(rows);
  for (int64_t column = 0; column < columns; column += kGroupColumns) {
    const int64_t group = std::min(kGroupColumns, columns - column);
    at::parallel_for(0, count_chunks(rows), 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t row = index * size;
        task(Chunk{index, row, std::min(size, rows - row), column, group});
      }
    });
    merge(column, group);
  }
}

}  // namespace deepclust

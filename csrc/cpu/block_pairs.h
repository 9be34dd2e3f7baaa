// All pairs of blocks of rows, in parallel, for kernels that add to something of both blocks of a pair.
//
// Tasks that share a block must not run at once, and what a block adds up must not depend on who was first. So pairs
// are taken in rounds of disjoint ones, as in a round-robin tournament: a block meets its partners in one order,
// whatever the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace deepclust {

constexpr int64_t kTileRows = 64, kTileColumns = 64;  // of a block, and so of a tile of scores
constexpr int64_t kSmallBlock = 32;  // of few rows, so that there are enough tasks; a multiple of every panel's columns
constexpr int64_t kFewRows = 128;

// Two blocks to be compared, and for which of them; a block compared with itself counts as rows alone.
struct BlockPair {
  int64_t row, rows, column, columns;
  bool for_rows = true, for_columns = true;
};

// Calls task(pair) for all pairs of blocks: of `rows` with `columns` ones, or, if these are the same, of every
// unordered pair once. Pairs that run at once never share a block, or, if the rows may meet, a block of columns.
template <typename Task>
void for_each_pair(int64_t rows, int64_t columns, bool same, bool rows_may_meet, const Task& task) {
  const int64_t block = columns <= kFewRows ? kSmallBlock : kTileColumns;
  const int64_t row_block = same ? block : kTileRows;
  const int64_t row_blocks = (rows + row_block - 1) / row_block;
  const int64_t column_blocks = (columns + block - 1) / block;
  const auto run = [&](int64_t i, int64_t j) {
    const int64_t row = i * row_block, column = j * block;
    task(BlockPair{row, std::min(row_block, rows - row), column, std::min(block, columns - column), true,
                   !(same && i == j)});
  };
  if (!same) {  // column block j meets row block j + round or, if there are fewer of these, j - round
    const int64_t rounds = std::max(row_blocks, column_blocks);
    const auto meet = [&](int64_t j, int64_t round) {
      const int64_t i = column_blocks <= row_blocks ? (j + round) % rounds : (j + rounds - round) % rounds;
      if (i < row_blocks) run(i, j);
    };
    for (int64_t round = 0; !rows_may_meet && round < rounds; ++round) {
      at::parallel_for(0, column_blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) meet(j, round);
      });
    }
    if (!rows_may_meet) return;
    at::parallel_for(0, column_blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        for (int64_t round = 0; round < rounds; ++round) meet(j, round);
      }
    });
    return;
  }
  // Blocks i and j meet in round (i + j) mod `odd`. The block that would meet itself meets the last one, if their
  // number is even, or else itself; an even number leaves a round in which every block meets itself.
  const int64_t odd = row_blocks % 2 == 1 ? row_blocks : row_blocks - 1;
  for (int64_t round = 0; round < row_blocks; ++round) {
    const bool all_alone = round == odd;
    const int64_t alone = round * ((odd + 1) / 2) % odd;
    at::parallel_for(0, all_alone ? row_blocks : (odd + 1) / 2, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        if (all_alone) {
          run(t, t);
        } else if (t == 0) {
          run(alone, odd == row_blocks ? alone : odd);
        } else {
          const int64_t i = (alone + t) % odd, j = (alone + odd - t) % odd;
          run(std::min(i, j), std::max(i, j));
        }
      }
    });
  }
}

}  // namespace deepclust

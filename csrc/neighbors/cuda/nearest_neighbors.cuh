// nearest_neighbors on CUDA: what its kernels read and write. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

// How the work is cut, decided from the sizes and the device.
struct NeighborsPlan {
  ElementType type;
  int64_t queries;    // B, above 0
  int64_t bank_rows;  // M, may be 0
  int64_t depth;      // D
  int64_t row_depth;  // elements of a prepared row: D rounded up to whole stages of a tile
  int neighbors;      // k
  int capacity;       // of a list
  int warps;          // of a thread block that searches, 16 queries each: 4 or 8
  int row_blocks;     // thread blocks along the queries
  int splits;         // thread blocks that share the bank
};

NeighborsPlan plan_nearest_neighbors(ElementType type, int64_t queries, int64_t bank_rows, int64_t depth, int neighbors,
                                     int multiprocessors);

struct NeighborsInputs {
  const void* query;       // (B, D)
  const void* bank;        // (M, D)
  const int64_t* exclude;  // (B,); null: no row is excluded
  const bool* valid;       // (M,); null: all are
};

// Device memory that the kernels need and nobody reads afterwards. T is the accumulation type. The prepared rows take
// as much as the inputs, the lists O(k) for every query and split.
enum {
  kNeighborsQueryRows,   // (parts, B, row_depth) as the products read them, scaled by powers of two
  kNeighborsBankRows,    // (parts, M, row_depth)
  kNeighborsQueryNorms,  // (B,) T: of the prepared rows; NaN if the query is not finite
  kNeighborsBankScales,  // (M,) T: inverse norms of the prepared rows; NaN: not a candidate
  kNeighborsLists,       // (B, splits, capacity) Candidate<T>
  kNeighborsCounts,      // (B, splits) int
  kNeighborsBadRows,     // () unsigned: not 0 if a valid row of the bank is not finite
  kNeighborsFields
};

// Bytes of every field.
struct NeighborsBytes {
  int64_t field[kNeighborsFields];
};
NeighborsBytes neighbors_bytes(const NeighborsPlan& plan);

struct NeighborsWorkspace {
  void* field[kNeighborsFields];
};

cudaError_t launch_nearest_neighbors(const NeighborsPlan& plan, const NeighborsInputs& inputs,
                                     const NeighborsWorkspace& workspace,
                                     void* cosines,     // (B, k) input type
                                     int64_t* indices,  // (B, k)
                                     cudaStream_t stream);

}  // namespace deepclust

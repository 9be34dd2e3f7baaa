// batch_hard_mining on CUDA: what its kernels read and write. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

// How the work is cut, decided from the sizes and the device.
struct MiningPlan {
  ElementType type;
  int64_t count;      // N, above 0
  int64_t depth;      // D
  int64_t first_row;  // the anchors: rows first_row ... end_row - 1
  int64_t end_row;
  int64_t row_depth;   // elements of a stored row: D rounded up to whole stages of a tile
  int warps;           // of a thread block, 16 rows each: 4 or 8
  int row_blocks;      // thread blocks along the rows
  int splits;          // thread blocks that share the columns
  int prepare_blocks;  // thread blocks of the first kernel
};

MiningPlan plan_mining(ElementType type, int64_t count, int64_t depth, int64_t first_row, int64_t end_row,
                       int multiprocessors);

// Device memory that both kernels need and nobody reads afterwards. T is the accumulation type.
enum {
  kMiningRows,            // (2, N, row_depth) teacher, student: normalized; half precision scaled by powers of two
  kMiningSplitRows,       // (4, N, row_depth) float16: teacher high, low, student high, low; only for kF32
  kMiningRowValues,       // (kRowValues, N) T
  kMiningLargestSquares,  // (2, prepare_blocks) T: squared norms of teacher and student; infinite if one is not finite
  kMiningCandidates,      // (N, splits, 2, kMaxCandidates) Candidate<T>
  kMiningResults,         // (splits, N) SearchResult<T>
  kMiningTickets,         // (row_blocks + 1,) unsigned
  kMiningSums,            // (row_blocks, kHsdSums) double
  kMiningFields
};

// Bytes of every field; 0 if the plan does not use it.
struct MiningBytes {
  int64_t field[kMiningFields];
};
MiningBytes mining_bytes(const MiningPlan& plan);

struct MiningWorkspace {
  void* field[kMiningFields];
};

struct LossOutputs {
  double temperature;
  LossReduction reduction;
  void* loss;   // (N,) for kNone, else (), input type
  void* stats;  // (5,) T
  void* slope;  // (2, N) T; null: no loss is computed
};

// Of anchors outside the plan's range nothing is written but the norms.
struct MiningOutputs {
  int64_t* positive_index;  // (N,)
  int64_t* negative_index;  // (N,)
  void* distance[4];        // (N,) each, input type: positive, negative, the same two among teachers; or null
  void* inverse_distance;   // (4, N) T: 1 / distance, 0 where it is clamped or absent; null with `distance`
  void* inverse_norm;       // (2, N) T
  LossOutputs loss;
};

// Mines the pairs of teacher and student, (N, D) each and contiguous, and computes the loss if outputs.loss asks for
// it: one launch after the one that prepares the rows.
cudaError_t launch_batch_hard_mining(const MiningPlan& plan,
                                     const void* teacher,  // (N, D)
                                     const void* student,  // (N, D)
                                     bool normalize, const MiningWorkspace& workspace, const MiningOutputs& outputs,
                                     cudaStream_t stream);

}  // namespace deepclust

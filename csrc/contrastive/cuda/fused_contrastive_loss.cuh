// fused_contrastive_loss on CUDA: what its kernels read and write. No torch here.
#pragma once

#include <cstdint>

#include "contrastive/contrastive_row.h"
#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

struct ContrastiveInputs {
  ElementType type;
  bool two_views;                // else anchors are z_a and their negatives the queue
  int64_t batch;                 // B, above 0
  int64_t queue;                 // M; 0 with two views
  int64_t depth;                 // D
  int64_t classes;               // K; 0 without class vectors
  const void* features[3];       // z_a (B, D), z_b (B, D), queue (M, D) or null
  const void* class_vectors[3];  // (B, K), (B, K), (M, K), or null
  ContrastiveOptions options;
  bool normalize;
  bool reduced_precision;  // torch allows products of float32 to be rounded

  int64_t anchors() const { return two_views ? 2 * batch : batch; }
};

// How rows lie in memory and are multiplied: float32 as two float16 parts or, in reduced precision, as tf32; half
// precision as it is, but with class vectors, which are scaled differently, as float32.
enum class ContrastiveProducts { kF16x3, kTf32, kF16, kBf16, kF64 };

// Rows whose sum over columns one launch computes: `count` rows from `first_row` against `columns` columns.
struct ContrastiveBlocks {
  int64_t first_row, count, first_column, columns;
  int row_blocks;  // thread blocks along the rows
  int splits;      // thread blocks that share the columns
};

// How the work is cut, decided from the sizes, the wanted gradients and the device. All rows, z_a, z_b and the queue in
// this order, are packed in one matrix: a row is divided by its norm and by sqrt(temperature), and its class vector
// follows, divided by sqrt(class_temperature). So the product of two rows is their score. (The CPU multiplies products
// by 1 / temperature instead: see contrastive/cpu/fused_contrastive_loss.cpp.)
struct ContrastivePlan {
  ContrastiveProducts products;
  int64_t rows;                 // 2 B + M
  int64_t row_depth;            // elements of a packed row: D + K rounded up to whole stages of a tile
  int prepare_blocks;           // thread blocks of the first kernel
  int warps;                    // forward: of a thread block, 16 rows each: 4 or 8
  int passes;                   // forward: 1; backward: 1 or 2 launches
  ContrastiveBlocks blocks[2];  // of each
  int first_chunk, last_chunk;  // backward: of the packed row, chunks in which a gradient is wanted
};

// z_a, z_b, class_a, class_b, queue, class_queue
constexpr int kContrastiveInputs = 6;

ContrastivePlan plan_contrastive_loss(const ContrastiveInputs& inputs, int multiprocessors);
ContrastivePlan plan_contrastive_gradient(const ContrastiveInputs& inputs, const bool (&wanted)[kContrastiveInputs],
                                          int multiprocessors);

// Device memory that the kernels of one call need and nobody reads afterwards. T is the accumulation type.
enum ContrastiveField {
  kRows,            // (parts, rows, row_depth) element of the products
  kScale,           // (rows,) T: factor by which a packed row is to be multiplied
  kInverseNorm,     // (rows,) T: factor of the features in the normalization
  kPositiveScores,  // (B,) T
  kLargestSquares,  // (prepare_blocks,) T: squared norms of packed rows; infinite if one is not finite
  kPartialSums,     // forward: (splits, anchors, 3) T
  kTickets,         // forward: (row_blocks + 1,) unsigned
  kLossSums,        // forward: (row_blocks,) double
  kAnchorValues,    // backward: (kContrastiveValues, anchors) T, see GradientArguments
  kGradientSums,    // backward: (splits, count, row_depth) T of the first and
  kQueueSums,       // of the second launch
  kContrastiveFields
};

// Bytes of every field; 0 if the plan does not use it.
struct ContrastiveBytes {
  int64_t field[kContrastiveFields];
};
ContrastiveBytes contrastive_bytes(const ContrastiveInputs& inputs, const ContrastivePlan& plan, bool backward);

struct ContrastiveWorkspace {
  void* field[kContrastiveFields];
};

// Losses of all anchors, (anchors,) or for sum and mean (), in the input type, and row_values
// (kContrastiveValues, anchors) in T: one launch after the one that packs the rows.
cudaError_t launch_fused_contrastive_loss(const ContrastiveInputs& inputs, const ContrastivePlan& plan,
                                          const ContrastiveWorkspace& workspace, LossReduction reduction, void* loss,
                                          void* row_values, cudaStream_t stream);

struct ContrastiveGradients {
  const void* grad_loss;               // (anchors,) input type
  int64_t grad_stride;                 // in elements, may be 0
  double factor;                       // by which grad_loss is to be multiplied
  const void* row_values;              // (kContrastiveValues, anchors) T
  void* gradient[kContrastiveInputs];  // like the inputs; null where not wanted
};

// A launch that packs the rows, one that sums for all owners of gradients over their columns, with a queue another one
// for the queue, and one that carries the sums through the normalization.
cudaError_t launch_fused_contrastive_loss_backward(const ContrastiveInputs& inputs, const ContrastivePlan& plan,
                                                   const ContrastiveWorkspace& workspace,
                                                   const ContrastiveGradients& gradients, cudaStream_t stream);

}  // namespace deepclust

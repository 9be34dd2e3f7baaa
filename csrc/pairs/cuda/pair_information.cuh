// pair_information and pair_statistics on CUDA: what their kernels read and write. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

struct PairInformationInputs {
  ElementType type;
  int64_t pairs;               // B, may be 0
  int64_t clusters;            // K, above 0
  int64_t depth;               // E, above 0
  const void* rows;            // (2B, E)
  const void* weight;          // (K, E)
  const void* teacher_rows;    // (2B, E)
  const void* teacher_weight;  // (K, E)
  const void* distribution;    // (K,)
  const void* pair_weights;    // (B,)
  double beta, temperature;
};

struct PairStatisticsInputs {
  ElementType type;
  int64_t pairs, clusters, depth;  // as above
  const void* rows;                // (2B, E)
  const void* weight;              // (K, E)
  double temperature;
};

// Pairs are taken block by block, so that the memory for logits does not grow with B.
struct PairPlan {
  int64_t block_pairs;  // above 0
  int multiprocessors;
};
PairPlan plan_pairs(int64_t pairs, int64_t clusters, int multiprocessors);

// Device memory that the kernels of one call need and nobody reads afterwards. T is the accumulation type.
enum PairField {
  kPairLogits,         // (2 block_pairs, K) T, later the gradient by them, or the shares
  kPairTeacherLogits,  // (2 block_pairs, K) T
  kPairPartSums,       // T, of products whose depth is cut; statistics: double, of columns
  kPairLogShares,      // (K,) T, of the distribution
  kPairWeights,        // (B,) T
  kPairRowValues,      // (2B,) double; statistics: (B,) double
  kPairColumnSums,     // (K,) double
  kPairInvalid,        // () unsigned
  kPairFields
};

// Bytes of every field; 0 if the op does not use it.
struct PairBytes {
  int64_t field[kPairFields];
};
PairBytes pair_information_bytes(const PairInformationInputs& inputs, const PairPlan& plan);
PairBytes pair_statistics_bytes(const PairStatisticsInputs& inputs, const PairPlan& plan);

struct PairWorkspace {
  void* field[kPairFields];
};

// Results are of T. Two launches and a few for each block of pairs; nothing waits for the device.
cudaError_t launch_pair_information(const PairInformationInputs& inputs, const PairPlan& plan,
                                    const PairWorkspace& workspace, void* information,  // ()
                                    void* grad_rows,                                    // (2B, E) or null: not wanted
                                    void* grad_weight,                                  // (K, E)
                                    cudaStream_t stream);

cudaError_t launch_pair_statistics(const PairStatisticsInputs& inputs, const PairPlan& plan,
                                   const PairWorkspace& workspace, void* sums,  // (K,)
                                   void* agreement,                             // (B,)
                                   void* largest,                               // ()
                                   cudaStream_t stream);

}  // namespace deepclust

// kmeans_seed on CUDA: what its kernels read and write. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

struct KmeansSeedInputs {
  ElementType type;
  int64_t count, depth;         // N, D, both above 0
  int64_t centers, candidates;  // K, C, both above 0
  const void* features;         // (N, D)
  const double* uniform;        // (K, C)
  const double* weights;        // (N,) or null
  bool cosine;
};

// How the work is cut, decided from the sizes, the device, and where the features lie. It does not show in the result.
struct KmeansSeedPlan {
  int64_t row_depth;  // D rounded up to whole chunks of 16 bytes
  bool copies;        // whether the rows are copied: widened, to that length, 16-byte aligned
  int64_t blocks;     // that share the distances of a step
  int64_t part_rows;  // of which a block adds up the integer costs
  int64_t parts;
};

KmeansSeedPlan plan_kmeans_seed(const KmeansSeedInputs& inputs, int multiprocessors);

// Device memory that the kernels of one call need and nobody reads afterwards. T is the accumulation type.
enum KmeansSeedField {
  kSeedRows,           // (N, row_depth) T, if copied
  kSeedNorms,          // (N,) T, for the cosine
  kSeedScales,         // (N,) T, for the cosine
  kSeedLeast,          // (N,) T distances from the nearest chosen row
  kSeedIntegers,       // (N,) int64 costs
  kSeedDistances,      // (C, N) T distances from the nearest chosen row if a candidate were chosen
  kSeedCandidates,     // (C,) int64
  kSeedCandidateRows,  // (C, row_depth) T, C rounded up to whole groups
  kSeedBlockSums,      // (C, blocks) int64 sums of integer costs
  kSeedBlockLargest,   // (C, blocks) float64 largest costs
  kSeedPartSums,       // (parts,) int64
  kSeedState,          // what a launch leaves to the next
  kKmeansSeedFields
};

// Bytes of every field; 0 if it is not used.
struct KmeansSeedBytes {
  int64_t field[kKmeansSeedFields];
};
KmeansSeedBytes kmeans_seed_bytes(const KmeansSeedInputs& inputs, const KmeansSeedPlan& plan);

struct KmeansSeedWorkspace {
  void* field[kKmeansSeedFields];
};

// Two launches for every center, and one before them.
cudaError_t launch_kmeans_seed(const KmeansSeedInputs& inputs, const KmeansSeedPlan& plan,
                               const KmeansSeedWorkspace& workspace,
                               int64_t* places,  // (K,)
                               cudaStream_t stream);

}  // namespace deepclust

// kmeans_assign and kmeans_update on CUDA: what their kernels read and write. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

struct KmeansAssignInputs {
  ElementType type;
  int64_t count, clusters, depth;  // N, K, D, all above 0
  const void* features;            // (N, D)
  const void* centroids;           // (K, D)
  bool cosine;
};

// How the work is cut, decided from the sizes, the device, and where the inputs lie.
struct KmeansAssignPlan {
  int64_t row_depth;  // D rounded up to whole stages of a tile
  bool copies[2];     // whether features and centroids are copied to rows of that length, 16-byte aligned
  int warps;          // of a thread block, 16 rows each: 4 or 8
};

KmeansAssignPlan plan_kmeans_assign(const KmeansAssignInputs& inputs, int multiprocessors);

// Device memory that the kernels of one call need and nobody reads afterwards. T is the accumulation type.
enum KmeansField {
  kFeatureRows,     // (N, row_depth) input type, if copied
  kCentroidRows,    // (K, row_depth) input type, if copied
  kCentroidNorms,   // (K,) T: infinite only where a centroid is not finite
  kCentroidBiases,  // (K,) T
  kCentroidScales,  // (K,) T
  kKmeansFields
};

// Bytes of every field; 0 if it is not used.
struct KmeansAssignBytes {
  int64_t field[kKmeansFields];
};
KmeansAssignBytes kmeans_assign_bytes(const KmeansAssignInputs& inputs, const KmeansAssignPlan& plan);

struct KmeansAssignWorkspace {
  void* field[kKmeansFields];
};

// Two launches, and one for each input that is copied.
cudaError_t launch_kmeans_assign(const KmeansAssignInputs& inputs, const KmeansAssignPlan& plan,
                                 const KmeansAssignWorkspace& workspace,
                                 int64_t* labels,  // (N,)
                                 void* distances,  // (N,) input type
                                 cudaStream_t stream);

struct KmeansUpdateInputs {
  ElementType type;
  int64_t count, clusters, depth;  // N, which may be 0, K, D
  const void* features;            // (N, D)
  const int64_t* labels;           // (N,)
};

// Sums of the parts into which the rows are cut; their number is decided from the sizes alone.
enum {
  kUpdatePartSums,    // (parts, K, D) T
  kUpdatePartCounts,  // (parts, K) int
  kKmeansUpdateFields
};

// Bytes of every field.
struct KmeansUpdateBytes {
  int64_t field[kKmeansUpdateFields];
};
KmeansUpdateBytes kmeans_update_bytes(const KmeansUpdateInputs& inputs);

struct KmeansUpdateWorkspace {
  void* field[kKmeansUpdateFields];
};

// Two launches.
cudaError_t launch_kmeans_update(const KmeansUpdateInputs& inputs, const KmeansUpdateWorkspace& workspace,
                                 void* sums,       // (K, D) T
                                 int64_t* counts,  // (K,)
                                 cudaStream_t stream);

}  // namespace deepclust

// sinkhorn_knopp on CUDA: what its kernels read and write. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

struct SinkhornInputs {
  ElementType type;
  int64_t problems;  // like all sizes above 0
  int64_t samples;   // N
  int64_t clusters;  // K
  int64_t num_iters;
  double epsilon;
  const void* scores;       // (problems, N, K)
  const void* shares[2];    // T of the samples (N,) or (problems, N), and of the clusters likewise; or null
  int64_t share_stride[2];  // from one problem's shares to the next's, may be 0
};

// How the work is cut, decided from the sizes alone. A chunk of rows is a thread block's, and a slice of rows has one
// sum for every column.
struct SinkhornPlan {
  int64_t chunk_rows;
  int64_t chunks;  // of a problem; if 1, a thread block solves the problem in one launch
  int64_t slices;
  int64_t tiles;  // of columns
  int row_lanes;  // that share a row
};

SinkhornPlan plan_sinkhorn_knopp(const SinkhornInputs& inputs);

// Device memory that the kernels of one call need and nobody reads afterwards. T is the accumulation type.
enum SinkhornField {
  kSampleShares,     // (problems, N) T; backward: their logarithms
  kClusterShares,    // (problems, K) T
  kInvalid,          // (problems,) unsigned: whether the problem's result is NaN
  kSliceSums,        // forward: (problems, slices, K, 3) T; backward: (problems, slices, K) T
  kLogSamples,       // forward: (problems, N, 2) T: log u
  kLogClusters,      // forward: (problems, 2, K, 2) T: log v of even and odd iterations
  kErrors,           // forward, with a tolerance: (problems, tiles) double
  kStopTickets,      // likewise: (problems,) unsigned
  kMeans,            // backward: (problems, N) T: mean of the gradient over a row
  kSampleGradient,   // backward: (problems, num_iters, N) T: by log u of the iteration before
  kClusterGradient,  // backward: (problems, num_iters, K) T: by log v
  kSinkhornFields
};

// Bytes of every field; 0 if it is not used.
struct SinkhornBytes {
  int64_t field[kSinkhornFields];
};
SinkhornBytes sinkhorn_forward_bytes(const SinkhornInputs& inputs, const SinkhornPlan& plan, bool has_tolerance);
SinkhornBytes sinkhorn_backward_bytes(const SinkhornInputs& inputs, const SinkhornPlan& plan);

struct SinkhornWorkspace {
  void* field[kSinkhornFields];
};

struct SinkhornResults {
  double tolerance;   // used if the workspace has errors
  void* assignments;  // (problems, N, K) input type
  int64_t* used;      // (problems,)
  void* potentials;   // (problems, num_iters, 2, N + K) T; null where not wanted
};

// One launch, or two and two for each iteration.
cudaError_t launch_sinkhorn_knopp(const SinkhornInputs& inputs, const SinkhornPlan& plan,
                                  const SinkhornWorkspace& workspace, const SinkhornResults& results,
                                  cudaStream_t stream);

struct SinkhornGradients {
  const void* grad_assignments;  // (problems, N, K) input type
  const int64_t* used;           // (problems,)
  const void* potentials;        // (problems, num_iters, 2, N + K) T
  void* grad_scores;             // (problems, N, K) input type
};

// One launch, or two and two for each iteration.
cudaError_t launch_sinkhorn_knopp_backward(const SinkhornInputs& inputs, const SinkhornPlan& plan,
                                           const SinkhornWorkspace& workspace, const SinkhornGradients& gradients,
                                           cudaStream_t stream);

}  // namespace deepclust

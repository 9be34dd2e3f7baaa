// Gradient of the mined distances on CUDA, shared by batch_hard_mining and fused_hsd_loss. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

// The gradient of the sum over pairs m = 0, 1 and rows i, with j = index[m][i], of
//     weight[m][i] |t_i - s_j| + weight[2 + m][i] |t_i - t_j|
// times `factor`, with respect to the rows before normalization. T is the accumulation type.
struct PairGradientInputs {
  ElementType type;
  int64_t count, depth;          // N, D
  const void* teacher;           // (N, D)
  const void* student;           // (N, D)
  const int64_t* index[2];       // (N,) -1: no such pair; index[0][0] = -1: the inputs were not finite
  const void* inverse_norm;      // (2, N) T
  const void* inverse_distance;  // (2, N) or (4, N) T, 0 where the distance is clamped
  const void* weight[4];         // (N,) input type; the last two null: no teacher-teacher distances
  int64_t weight_stride[4];      // in elements, may be 0
  double factor;
  bool normalize;
};

// One launch. A gradient that is null is not wanted. Contributions to a row are added in the order of the pairs,
// without atomics. `sums` are (N, D) of T for the teacher and the student: the gradients themselves where the type is
// T.
cudaError_t launch_pair_gradient(const PairGradientInputs& inputs,
                                 void* grad_teacher,  // (N, D)
                                 void* grad_student,  // (N, D)
                                 void* teacher_sums, void* student_sums, cudaStream_t stream);

}  // namespace deepclust

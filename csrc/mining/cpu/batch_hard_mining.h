// Mining on the CPU, shared by batch_hard_mining and fused_hsd_loss.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/row_range.h"

namespace deepclust {

struct MinedPairs {
  at::Tensor index;             // (2, N) int64: positive, negative; -1 where there is none
  at::Tensor distance;          // (4, N): positive, negative, positive among teachers, negative among teachers
  at::Tensor inverse_distance;  // (4, N): 1 / distance; 0 where the distance is clamped or the pair absent
  at::Tensor inverse_norm;      // (2, N): of the teacher and the student rows; 1 without normalize
};

// Inputs are contiguous float or double; NaN or Inf anywhere gives distances of NaN and no pair. Of anchors outside the
// range nothing is written but the norms.
MinedPairs mine_hard_pairs(const at::Tensor& teacher /* (N, D) */, const at::Tensor& student /* (N, D) */,
                           bool normalize, RowRange anchors);

}  // namespace deepclust

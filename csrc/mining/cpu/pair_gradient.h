// Gradient of the mined distances, shared by batch_hard_mining and fused_hsd_loss.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace deepclust {

// Gradients, with respect to the rows before normalization, of the sum over m = 0, 1 and i of
//     weight[m][i] |t_i - s_j| + weight[2 + m][i] |t_i - t_j|,  j = index[m][i].
// `slope` is weight / distance, 0 where the distance is clamped; without weights among teachers it is (2, N). Pairs of
// index -1 count nothing, but if the first positive is missing, the inputs were not finite and the gradients are NaN. A
// gradient that is not wanted comes back as an empty tensor. Contributions to a row are added in the order of their
// anchors: the result does not depend on the thread count.
std::tuple<at::Tensor, at::Tensor> pair_gradient(const at::Tensor& teacher,       // (N, D) float or double, contiguous
                                                 const at::Tensor& student,       // (N, D)
                                                 const at::Tensor& index,         // (2, N) int64
                                                 const at::Tensor& inverse_norm,  // (2, N)
                                                 const at::Tensor& slope,         // (2, N) or (4, N)
                                                 bool normalize, bool want_teacher, bool want_student);

}  // namespace deepclust

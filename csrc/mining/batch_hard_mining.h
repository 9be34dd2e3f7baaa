// batch_hard_mining: the hardest positive and negative of every anchor, by teacher and student distances.
//
// With t_i and s_j the rows of teacher and student, L2-normalized (norm at least 1e-12) if `normalize`:
//     DT_ij = sqrt(max(|t_i - t_j|^2, 1e-12))      D_ij = sqrt(max(|t_i - s_j|^2, 1e-12))
//     negatives of i: j with DT_ij > D_ii          positives of i: all others, i itself among them
//     positive_index: argmax over positives of D_ij      negative_index: argmin over negatives of D_ij
// Ties go to the lowest index. Distances of absent pairs (index -1) are 0. NaN or Inf anywhere, or without `normalize`
// squares that overflow the accumulation type: all indices -1, all distances NaN. float16 and bfloat16 are computed in
// float32. All four distances are differentiable (gradient 0 where the clamp is active); second derivatives are an
// error. Deterministic, independent of the thread count; nothing of size N x N is kept. Offsets are 64-bit, so N * D
// may exceed 2^31. Source: HaDis, arXiv 2401.14038.
//
// Anchors are the R = num_rows rows from first_row on, all from there by default; columns are always all N. What comes
// of an anchor is the same in every range.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <tuple>

namespace deepclust {

// positive_distance, negative_distance, positive_teacher_distance, negative_teacher_distance (R,) in the input dtype;
// positive_index, negative_index (R,) int64; for the backward pass, in the accumulation dtype, inverse_distance (4, R)
// (0 where clamped) and inverse_norm (2, N).
using BatchHardMiningOutputs =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

BatchHardMiningOutputs batch_hard_mining(const at::Tensor& teacher,  // (N, D)
                                         const at::Tensor& student,  // (N, D)
                                         bool normalize, c10::SymInt first_row, std::optional<c10::SymInt> num_rows);

void check_batch_hard_mining(const at::Tensor& teacher, const at::Tensor& student);

}  // namespace deepclust

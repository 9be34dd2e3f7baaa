// fused_contrastive_loss: the hardness-weighted contrastive loss in one op.
//
// Two views: anchors are the 2B rows of z_a and z_b, the positive of a row is its other view, its negatives are the
// other 2B - 2 rows. With a queue: anchors z_a, positives z_b, negatives the M rows of the queue. With rows z,
// L2-normalized (norm at least 1e-12) if `normalize`, class vectors c, and R the number of negatives:
//     s_ij = z_i.z_j / temperature + c_i.c_j / class_temperature
//     G_i = R sum_neg exp((1 + hardness) s_ij) / sum_neg exp(hardness s_ij)      (sum_neg exp(s_ij) for hardness 0)
//     debias > 0:  G_i <- max((G_i - debias R exp(s_i,pos)) / (1 - debias), R exp(-1 / temperature))
//     loss_i = -s_i,pos + log(exp(s_i,pos) + G_i)
// R = 0 gives loss 0. NaN or Inf anywhere, or rows whose scaled squares overflow the accumulation type: every loss and
// gradient is NaN. float16 and bfloat16 are computed in float32. Gradients reach all six tensors and go through the
// weights; second derivatives are an error. Any size of the scores is safe. Deterministic, independent of the thread
// count; nothing of size N x N is kept. Offsets are 64-bit. Sources: arXiv 2002.05709 (NT-Xent), 2010.04592 (hardness,
// debias), 1911.05722 (queue), 2306.05439 (class vectors).
//
// Where the negatives of an anchor are spread over processes, each pair of rows is computed by one of them, with the
// overloads log_sums, on the CPU alone. Their anchors are the rows of z_a and z_b and, if there is one, of the queue.
// Of two views they give (3, anchors) in float64: s_i,pos, log sum_neg exp((1 + hardness) s_ij) and log sum_neg
// exp(hardness s_ij), 0 for hardness 0. With a queue the pairs are those between its rows and the others, without any
// positive. Backward is given the row_values of the anchors with the gradients in their slopes, relative to any shifts,
// such as (log sum) / (1 + hardness) over all negatives, and gives gradients in the accumulation dtype.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace deepclust {

// loss, () or (anchors,) for reduction "none", in the input dtype; for the backward pass row_values
// (kContrastiveValues, anchors) in the accumulation dtype, see contrastive/contrastive_row.h, and anchor_gradient, on
// the CPU with a queue and keep_gradient (anchors, D + K), else empty: the derivative of every anchor's loss by its
// normalized row and scaled class vector, times the temperature. With it, the backward pass reads no queue that needs
// no gradient.
using FusedContrastiveLossOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Of z_a, z_b, class_a, class_b, queue, class_queue; empty where not asked for.
using FusedContrastiveLossGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

FusedContrastiveLossOutputs fused_contrastive_loss(const at::Tensor& z_a,  // (B, D)
                                                   const at::Tensor& z_b,  // (B, D)
                                                   double temperature, double hardness, double debias,
                                                   const std::optional<at::Tensor>& class_a,  // (B, K)
                                                   const std::optional<at::Tensor>& class_b,  // (B, K)
                                                   double class_temperature,
                                                   const std::optional<at::Tensor>& queue,        // (M, D)
                                                   const std::optional<at::Tensor>& class_queue,  // (M, K)
                                                   bool normalize, std::string_view reduction, bool keep_gradient);

void check_fused_contrastive_loss(const at::Tensor& z_a, const at::Tensor& z_b, double temperature, double hardness,
                                  double debias, const std::optional<at::Tensor>& class_a,
                                  const std::optional<at::Tensor>& class_b, double class_temperature,
                                  const std::optional<at::Tensor>& queue, const std::optional<at::Tensor>& class_queue,
                                  std::string_view reduction);

}  // namespace deepclust

// fused_hsd_loss: the hardness-aware self-distillation loss of HaDis (arXiv 2401.14038) in one op.
//
// On the pairs p_i, n_i and distances D, DT of batch_hard_mining:
//     wp_i = max(D_i,p_i - DT_i,p_i, 0)      wn_i = max(DT_i,n_i - D_i,n_i, 0)      (constants: no gradient)
//     loss_i = log(1 + exp((wp_i D_i,p_i - wn_i D_i,n_i) / temperature))
// An absent pair has logit 0. The gradient reaches t_i, s_p and s_n:
//     dloss_i/dD_i,p_i = sigma_i wp_i / temperature      dloss_i/dD_i,n_i = -sigma_i wn_i / temperature
// with sigma_i the logistic function of the exponent. Everything else is the contract of batch_hard_mining; N = 0 gives
// a mean and a sum of 0. Student equal to teacher, like a collapse to one point, gives exactly log 2 and gradient 0.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <tuple>

namespace deepclust {

// loss, () or (N,) for reduction "none", in the input dtype; and, in the accumulation dtype,
// stats (5,): shares of anchors with wn = 0, with wp = 0 and without a negative, mean D_i,p_i, mean D_i,n_i over the
// pairs there are; for the backward pass index (2, N) int64, slope (2, N) (dloss_i/dD / D, 0 where D is clamped) and
// inverse_norm (2, N).
using FusedHsdLossOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

FusedHsdLossOutputs fused_hsd_loss(const at::Tensor& teacher,  // (N, D)
                                   const at::Tensor& student,  // (N, D)
                                   double temperature, bool normalize, std::string_view reduction);

void check_fused_hsd_loss(const at::Tensor& teacher, const at::Tensor& student, double temperature,
                          std::string_view reduction);

}  // namespace deepclust

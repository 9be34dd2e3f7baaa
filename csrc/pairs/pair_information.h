// pair_information: the weighted mutual information of pairs by the shares of a student and of its teacher, with its
// gradient (TEMI, arXiv 2303.17896, section 3). pair_statistics: what it needs to know of the teachers' shares before.
//
// Rows come in pairs: row i and row i + B, of student and of teacher alike. With logits over the temperature
//     s_ik = rows_i.weight_k / T        t_ik = teacher_rows_i.teacher_weight_k / T
// shares are q = softmax(s) and p = softmax(t), and with i' the other row of a pair and w its weight
//     information = 1 / 2B sum_i w_i log sum_k (q_ik p_i'k)^beta / distribution_k
//                 = 1 / 2B sum_i w_i (lse_k(j_ik) - beta lse_k(s_ik)),  j_ik = beta (s_ik + t_i'k - lse(t_i')) - log
//                 distribution_k
//     d information / d s_ik = w_i beta / 2B (softmax(j_i)_k - softmax(s_i)_k)
// Shares of the distribution below the smallest normal number count as that. No pairs: information 0, gradients 0.
//
// Results are of the accumulation dtype: float64 for float64, else float32. Where a logit, a share of the distribution
// or a weight is not finite, all results are NaN. The outputs are constants: no gradient reaches the inputs through
// them, and forward-mode tangents are an error. Deterministic, independent of the thread count. Offsets are 64-bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace deepclust {

// information (); its gradients by rows (2B, E), or (0, E) without want_rows, and by weight (K, E)
std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_information(const at::Tensor& rows,            // (2B, E), E > 0
                                                                const at::Tensor& weight,          // (K, E), K > 0
                                                                const at::Tensor& teacher_rows,    // (2B, E)
                                                                const at::Tensor& teacher_weight,  // (K, E)
                                                                const at::Tensor& distribution,    // (K,)
                                                                const at::Tensor& pair_weights,    // (B,)
                                                                double beta, double temperature, bool want_rows);

void check_pair_information(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& teacher_rows,
                            const at::Tensor& teacher_weight, const at::Tensor& distribution,
                            const at::Tensor& pair_weights, double beta, double temperature);

// sums (K,) over rows of the shares p; agreement (B,) sum_k p_ik p_i'k of each pair; largest (), the mean over rows of
// the largest share, 0 of no rows
std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_statistics(const at::Tensor& rows,    // (2B, E), E > 0
                                                               const at::Tensor& weight,  // (K, E), K > 0
                                                               double temperature);

void check_pair_statistics(const at::Tensor& rows, const at::Tensor& weight, double temperature);

}  // namespace deepclust

// sinkhorn_knopp: assignments with prescribed cluster sizes, for batches of problems.
//
// For every problem scores (N, K), with shares r of the samples and c of the clusters that add up to 1 (1/N and 1/K
// where not given), from u_n = 1 (0 where r_n = 0), `num_iters` times:
//     v_k = c_k / sum_n u_n exp(s_nk / epsilon)      u_n = r_n / sum_k v_k exp(s_nk / epsilon)
// Returned is N diag(u) exp(s / epsilon) diag(v). With `tolerance` a problem stops once sum_k |sum_n P_nk - c_k| is at
// most that. Equal to these iterates for all finite scores: nothing overflows or runs empty. NaN or Inf in scores or
// shares, a negative share, or shares that are all 0: the problem is NaN. float16 and bfloat16 are computed in float32.
// With `differentiable` the gradient of the iterations reaches the scores; second derivatives are an error.
// Deterministic, independent of the thread count. Sources: arXiv 1306.0895, 2006.09882 (order of the steps).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <tuple>

namespace deepclust {

// assignments (..., N, K) in the input dtype; iterations used (...) int64; for the backward pass, if `differentiable`,
// potentials (..., num_iters, 2, N + K) in the accumulation dtype: after every iteration log(u_n / r_n), then of that
// iteration log(v_k / c_k), both as logarithms of the sums above, which exist for shares of 0 too. A pair of numbers
// holds the digits that one would lose where scores are huge: on the CPU their sum is the logarithm, on CUDA it is
// first / epsilon + second.
using SinkhornKnoppOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

SinkhornKnoppOutputs sinkhorn_knopp(const at::Tensor& scores,  // (..., N, K)
                                    double epsilon, c10::SymInt num_iters,
                                    const std::optional<at::Tensor>& sample_marginals,   // (N,) or (..., N)
                                    const std::optional<at::Tensor>& cluster_marginals,  // (K,) or (..., K)
                                    std::optional<double> tolerance, bool differentiable);

// The same without gradient, its assignments written into `out`: of the shape, dtype and device of scores, contiguous,
// its memory apart from that of the inputs. On the CPU, float32 and float64 take no other memory of its size, unless
// scores are not contiguous or s / epsilon is too large for exponents. Returns the iterations used.
at::Tensor sinkhorn_knopp_out(const at::Tensor& scores,  // (..., N, K)
                              double epsilon, c10::SymInt num_iters,
                              const std::optional<at::Tensor>& sample_marginals,   // (N,) or (..., N)
                              const std::optional<at::Tensor>& cluster_marginals,  // (K,) or (..., K)
                              std::optional<double> tolerance,
                              const at::Tensor& out  // (..., N, K)
);

void check_sinkhorn_knopp(const at::Tensor& scores, double epsilon, int64_t num_iters,
                          const std::optional<at::Tensor>& sample_marginals,
                          const std::optional<at::Tensor>& cluster_marginals, std::optional<double> tolerance);

// Shares as kernels take them, contiguous. Only their ratios count. So float64 shares are first divided by a power of
// two that makes the largest about 1, which changes no digit. Then neither they nor their sum overflow in a shorter
// type, and small shares do not all become 0.
at::Tensor to_shares(const at::Tensor& shares, at::ScalarType dtype);

// What is asked of `out`, once the other arguments have been checked.
void check_sinkhorn_knopp_out(const at::Tensor& scores, const std::optional<at::Tensor>& sample_marginals,
                              const std::optional<at::Tensor>& cluster_marginals, const at::Tensor& out);

}  // namespace deepclust

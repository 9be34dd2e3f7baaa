#include "sinkhorn/sinkhorn_knopp.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"

namespace deepclust {

using OptionalTensor = std::optional<at::Tensor>;

namespace {

void check_shares(const OptionalTensor& shares, const at::Tensor& scores, int64_t dim, const char* name) {
  if (!shares) return;
  const c10::SymInt size = scores.sym_size(dim);
  const auto batch = scores.sym_sizes().slice(0, scores.dim() - 2);
  const bool is_shared = shares->dim() == 1 && shares->sym_size(0) == size;
  const bool is_batched = shares->dim() == scores.dim() - 1 && shares->sym_size(-1) == size &&
                          shares->sym_sizes().slice(0, scores.dim() - 2) == batch;
  TORCH_CHECK_VALUE(is_shared || is_batched, name, ": expected shape [", size, "] or one per problem, got ",
                    shares->sym_sizes());
  TORCH_CHECK_TYPE(shares->is_floating_point(), name, ": expected a floating dtype, got ", shares->scalar_type());
  TORCH_CHECK_VALUE(shares->device() == scores.device(), name, ": expected device ", scores.device(),
                    " like scores, got ", shares->device());
}

}  // namespace

void check_sinkhorn_knopp(const at::Tensor& scores, double epsilon, int64_t num_iters,
                          const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                          std::optional<double> tolerance) {
  check_dtype(scores, "scores");
  TORCH_CHECK_VALUE(scores.dim() >= 2, "scores: expected shape (..., N, K), got ", scores.sym_sizes());
  check_positive(epsilon, "epsilon");
  TORCH_CHECK_VALUE(num_iters >= 1, "num_iters: expected at least 1, got ", num_iters);
  TORCH_CHECK_VALUE(!tolerance || (std::isfinite(*tolerance) && *tolerance >= 0),
                    "tolerance: expected a finite number of at least 0, got ", tolerance.value_or(0));
  check_shares(sample_marginals, scores, -2, "sample_marginals");
  check_shares(cluster_marginals, scores, -1, "cluster_marginals");
}

SinkhornKnoppOutputs sinkhorn_knopp(const at::Tensor& scores, double epsilon, int64_t num_iters,
                                    const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                                    std::optional<double> tolerance, bool differentiable) {
  static const auto op = find_op<decltype(sinkhorn_knopp)>("deepclust_ext::sinkhorn_knopp");
  return op.call(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, differentiable);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor sinkhorn_knopp_backward(const at::Tensor& grad_assignments,      // (..., N, K)
                                   const at::Tensor& scores,                // (..., N, K)
                                   const at::Tensor& used,                  // (...) int64
                                   const at::Tensor& potentials,            // (..., num_iters, N + K)
                                   double epsilon,                          //
                                   const OptionalTensor& sample_marginals,  // (N,) or (..., N)
                                   const OptionalTensor& cluster_marginals  // (K,) or (..., K)
) {
  static const auto op = find_op<decltype(sinkhorn_knopp_backward)>("deepclust_ext::sinkhorn_knopp_backward");
  return op.call(grad_assignments, scores, used, potentials, epsilon, sample_marginals, cluster_marginals);
}

class SinkhornKnopp : public torch::autograd::Function<SinkhornKnopp> {
 public:
  // Only the assignments go through the graph; `outputs` receives the rest.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& scores, double epsilon, int64_t num_iters,
                            const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                            std::optional<double> tolerance, SinkhornKnoppOutputs* outputs) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    *outputs = sinkhorn_knopp(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, true);
    const auto& [assignments, used, potentials] = *outputs;
    context->save_for_backward(
        {scores, used, potentials, or_undefined(sample_marginals), or_undefined(cluster_marginals)});
    context->saved_data["epsilon"] = epsilon;
    return assignments;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const auto or_none = [](const at::Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; };
    const at::Tensor none;
    return {sinkhorn_knopp_backward(grads[0], saved[0], saved[1], saved[2], context->saved_data["epsilon"].toDouble(),
                                    or_none(saved[3]), or_none(saved[4])),
            none,
            none,
            none,
            none,
            none,
            none};
  }
};

SinkhornKnoppOutputs sinkhorn_knopp_autograd(const at::Tensor& scores, double epsilon, int64_t num_iters,
                                             const OptionalTensor& sample_marginals,
                                             const OptionalTensor& cluster_marginals, std::optional<double> tolerance,
                                             bool differentiable) {
  check_no_tangent("sinkhorn_knopp", scores, or_undefined(sample_marginals), or_undefined(cluster_marginals));
  if (!differentiable || !needs_graph(scores)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return sinkhorn_knopp(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, differentiable);
  }
  SinkhornKnoppOutputs outputs;
  std::get<0>(outputs) =
      SinkhornKnopp::apply(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, &outputs);
  return outputs;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "sinkhorn_knopp(Tensor scores, float epsilon=0.05, int num_iters=3, Tensor? sample_marginals=None, "
      "Tensor? cluster_marginals=None, float? tolerance=None, bool differentiable=False) -> (Tensor assignments, "
      "Tensor used, Tensor potentials)");
  m.def(
      "sinkhorn_knopp_backward(Tensor grad_assignments, Tensor scores, Tensor used, Tensor potentials, float epsilon, "
      "Tensor? sample_marginals, Tensor? cluster_marginals) -> Tensor grad_scores");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) {
  m.impl("sinkhorn_knopp", sinkhorn_knopp_autograd);
  m.impl("sinkhorn_knopp_backward", torch::autograd::autogradNotImplementedFallback());
}

DEEPCLUST_AUTOCAST(sinkhorn_knopp)

}  // namespace deepclust

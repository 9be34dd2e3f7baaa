#include "sinkhorn/sinkhorn_knopp.h"

#include <ATen/ops/amax.h>
#include <ATen/ops/frexp.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>

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

// Whether the memory from the first to the last element of one tensor meets that of the other.
bool share_memory(const at::Tensor& first, const at::Tensor& second) {
  if (first.numel() == 0 || second.numel() == 0) return false;
  const auto range_of = [](const at::Tensor& x) {
    const auto begin = reinterpret_cast<uintptr_t>(x.const_data_ptr());
    int64_t last = 0;
    for (int64_t dim = 0; dim < x.dim(); ++dim) last += (x.size(dim) - 1) * x.stride(dim);
    return std::make_pair(begin, begin + (last + 1) * x.element_size());
  };
  const auto [first_begin, first_end] = range_of(first);
  const auto [second_begin, second_end] = range_of(second);
  return first_begin < second_end && second_begin < first_end;
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

void check_sinkhorn_knopp_out(const at::Tensor& scores, const OptionalTensor& sample_marginals,
                              const OptionalTensor& cluster_marginals, const at::Tensor& out) {
  TORCH_CHECK_VALUE(out.sizes() == scores.sizes(), "out: expected shape ", scores.sizes(), " like scores, got ",
                    out.sizes());
  TORCH_CHECK_TYPE(out.scalar_type() == scores.scalar_type(), "out: expected dtype ", scores.scalar_type(),
                   " like scores, got ", out.scalar_type());
  TORCH_CHECK_VALUE(out.device() == scores.device(), "out: expected device ", scores.device(), " like scores, got ",
                    out.device());
  TORCH_CHECK_VALUE(out.is_contiguous(), "out: expected a contiguous tensor, got strides ", out.strides());
  const std::pair<const char*, at::Tensor> inputs[] = {{"scores", scores},
                                                       {"sample_marginals", or_undefined(sample_marginals)},
                                                       {"cluster_marginals", or_undefined(cluster_marginals)}};
  for (const auto& [name, input] : inputs) {
    TORCH_CHECK_VALUE(!input.defined() || !share_memory(out, input), "out: expected memory apart from that of ", name);
  }
}

at::Tensor to_shares(const at::Tensor& shares, at::ScalarType dtype) {
  if (shares.scalar_type() != at::kDouble) return shares.to(dtype).contiguous();
  const at::Tensor largest = shares.amax(-1, true);
  const at::Tensor power = largest / (std::get<0>(at::frexp(largest)) * 2);
  return (shares / power).to(dtype).contiguous();
}

SinkhornKnoppOutputs sinkhorn_knopp(const at::Tensor& scores, double epsilon, c10::SymInt num_iters,
                                    const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                                    std::optional<double> tolerance, bool differentiable) {
  static const auto op = find_op<decltype(sinkhorn_knopp)>("deepclust_ext::sinkhorn_knopp");
  return op.call(scores, epsilon, std::move(num_iters), sample_marginals, cluster_marginals, tolerance, differentiable);
}

at::Tensor sinkhorn_knopp_out(const at::Tensor& scores, double epsilon, c10::SymInt num_iters,
                              const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                              std::optional<double> tolerance, const at::Tensor& out) {
  static const auto op = find_op<decltype(sinkhorn_knopp_out)>("deepclust_ext::sinkhorn_knopp", "out");
  return op.call(scores, epsilon, std::move(num_iters), sample_marginals, cluster_marginals, tolerance, out);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor sinkhorn_knopp_backward(const at::Tensor& grad_assignments,      // (..., N, K)
                                   const at::Tensor& scores,                // (..., N, K)
                                   const at::Tensor& used,                  // (...) int64
                                   const at::Tensor& potentials,            // (..., num_iters, 2, N + K)
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
  static at::Tensor forward(AutogradContext* context, const at::Tensor& scores, double epsilon, c10::SymInt num_iters,
                            const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                            std::optional<double> tolerance, SinkhornKnoppOutputs* outputs) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    *outputs =
        sinkhorn_knopp(scores, epsilon, std::move(num_iters), sample_marginals, cluster_marginals, tolerance, true);
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

SinkhornKnoppOutputs sinkhorn_knopp_autograd(const at::Tensor& scores, double epsilon, c10::SymInt num_iters,
                                             const OptionalTensor& sample_marginals,
                                             const OptionalTensor& cluster_marginals, std::optional<double> tolerance,
                                             bool differentiable) {
  check_no_tangent("sinkhorn_knopp", scores, or_undefined(sample_marginals), or_undefined(cluster_marginals));
  if (!differentiable || !needs_graph(scores)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return sinkhorn_knopp(scores, epsilon, std::move(num_iters), sample_marginals, cluster_marginals, tolerance,
                          differentiable);
  }
  SinkhornKnoppOutputs outputs;
  std::get<0>(outputs) = SinkhornKnopp::apply(scores, epsilon, std::move(num_iters), sample_marginals,
                                              cluster_marginals, tolerance, &outputs);
  return outputs;
}

at::Tensor sinkhorn_knopp_out_autograd(const at::Tensor& scores, double epsilon, c10::SymInt num_iters,
                                       const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                                       std::optional<double> tolerance, const at::Tensor& out) {
  check_no_tangent("sinkhorn_knopp", scores, or_undefined(sample_marginals), or_undefined(cluster_marginals), out);
  TORCH_CHECK_VALUE(!needs_graph(out), "out: expected a tensor that requires no gradient");
  const at::AutoDispatchBelowAutograd guard;
  return sinkhorn_knopp_out(scores, epsilon, std::move(num_iters), sample_marginals, cluster_marginals, tolerance, out);
}

// Tells autograd that `out` changed: a backward pass that has kept it is an error then.
at::Tensor sinkhorn_knopp_out_inplace(const at::Tensor& scores, double epsilon, c10::SymInt num_iters,
                                      const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                                      std::optional<double> tolerance, const at::Tensor& out) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor used =
      sinkhorn_knopp_out(scores, epsilon, std::move(num_iters), sample_marginals, cluster_marginals, tolerance, out);
  out.unsafeGetTensorImpl()->bump_version();
  return used;
}

// As DEEPCLUST_AUTOCAST, but for `out`, which is written.
template <c10::DeviceType kDevice>
at::Tensor sinkhorn_knopp_out_autocast(const at::Tensor& scores, double epsilon, c10::SymInt num_iters,
                                       const OptionalTensor& sample_marginals, const OptionalTensor& cluster_marginals,
                                       std::optional<double> tolerance, const at::Tensor& out) {
  const c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  return sinkhorn_knopp_out(at::autocast::cached_cast(at::kFloat, scores, kDevice), epsilon, std::move(num_iters),
                            sample_marginals, cluster_marginals, tolerance, out);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "sinkhorn_knopp(Tensor scores, float epsilon=0.05, SymInt num_iters=3, Tensor? sample_marginals=None, "
      "Tensor? cluster_marginals=None, float? tolerance=None, bool differentiable=False) -> (Tensor assignments, "
      "Tensor used, Tensor potentials)");
  // Not in torch's form of an out= function, which returns `out`: compilers take no op whose results alias.
  m.def(
      "sinkhorn_knopp.out(Tensor scores, float epsilon=0.05, SymInt num_iters=3, Tensor? sample_marginals=None, "
      "Tensor? cluster_marginals=None, float? tolerance=None, *, Tensor(a!) out) -> Tensor used");
  m.def(
      "sinkhorn_knopp_backward(Tensor grad_assignments, Tensor scores, Tensor used, Tensor potentials, float epsilon, "
      "Tensor? sample_marginals, Tensor? cluster_marginals) -> Tensor grad_scores");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) {
  m.impl("sinkhorn_knopp", sinkhorn_knopp_autograd);
  m.impl("sinkhorn_knopp.out", sinkhorn_knopp_out_autograd);
  m.impl("sinkhorn_knopp_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(deepclust_ext, ADInplaceOrView, m) { m.impl("sinkhorn_knopp.out", sinkhorn_knopp_out_inplace); }

DEEPCLUST_AUTOCAST(sinkhorn_knopp)

TORCH_LIBRARY_IMPL(deepclust_ext, AutocastCPU, m) {
  m.impl("sinkhorn_knopp.out", sinkhorn_knopp_out_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(deepclust_ext, AutocastCUDA, m) {
  m.impl("sinkhorn_knopp.out", sinkhorn_knopp_out_autocast<c10::DeviceType::CUDA>);
}

}  // namespace deepclust

#include "sinkhorn/sinkhorn_knopp.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <functional>
#include <numeric>
#include <vector>

#include "core/cuda/context.h"
#include "core/cuda/types.h"
#include "sinkhorn/cuda/sinkhorn_knopp.cuh"

namespace deepclust {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// The inputs of one call, contiguous, as the launch functions want them.
class SinkhornCall {
 public:
  SinkhornCall(const at::Tensor& scores, double epsilon, int64_t num_iters, const OptionalTensor& sample_marginals,
               const OptionalTensor& cluster_marginals)
      : scores_(scores.contiguous()) {
    const auto batch = scores.sizes().slice(0, scores.dim() - 2);
    inputs_.type = element_type(scores);
    inputs_.problems = std::accumulate(batch.begin(), batch.end(), int64_t{1}, std::multiplies<int64_t>());
    inputs_.samples = scores.size(-2);
    inputs_.clusters = scores.size(-1);
    inputs_.num_iters = num_iters;
    inputs_.epsilon = epsilon;
    inputs_.scores = scores_.const_data_ptr();
    const OptionalTensor* shares[2] = {&sample_marginals, &cluster_marginals};
    for (int side = 0; side < 2; ++side) {
      if (!*shares[side]) continue;
      shares_[side] = to_shares(**shares[side], accumulation_dtype(scores));
      inputs_.shares[side] = shares_[side].const_data_ptr();
      inputs_.share_stride[side] = shares_[side].dim() > 1 ? shares_[side].size(-1) : 0;
    }
  }

  const SinkhornInputs& inputs() const { return inputs_; }

 private:
  at::Tensor scores_, shares_[2];
  SinkhornInputs inputs_{};
};

// Writes the assignments, the iterations used and, if they are not empty, the potentials.
void write_outputs(const at::Tensor& scores, double epsilon, int64_t num_iters, const OptionalTensor& sample_marginals,
                   const OptionalTensor& cluster_marginals, std::optional<double> tolerance,
                   const at::Tensor& assignments, const at::Tensor& used, const at::Tensor& potentials,
                   const DeviceScope& device) {
  if (scores.numel() == 0) {
    used.fill_(num_iters);
    potentials.zero_();
    return;
  }
  const SinkhornCall call(scores, epsilon, num_iters, sample_marginals, cluster_marginals);
  const SinkhornPlan plan = plan_sinkhorn_knopp(call.inputs());
  const DeviceMemory<SinkhornWorkspace> memory(sinkhorn_forward_bytes(call.inputs(), plan, tolerance.has_value()),
                                               scores.options());
  const SinkhornResults results{tolerance.value_or(0), assignments.mutable_data_ptr(), used.mutable_data_ptr<int64_t>(),
                                potentials.numel() > 0 ? potentials.mutable_data_ptr() : nullptr};
  check_launch(launch_sinkhorn_knopp(call.inputs(), plan, memory.workspace(), results, device.stream()));
}

SinkhornKnoppOutputs sinkhorn_knopp_cuda(const at::Tensor& scores,  // (..., N, K)
                                         double epsilon, int64_t num_iters,
                                         const OptionalTensor& sample_marginals,   // (N,) or (..., N)
                                         const OptionalTensor& cluster_marginals,  // (K,) or (..., K)
                                         std::optional<double> tolerance, bool differentiable) {
  check_sinkhorn_knopp(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance);
  const DeviceScope device(scores);
  const at::TensorOptions options = scores.options();
  const auto batch = scores.sizes().slice(0, scores.dim() - 2);
  std::vector<int64_t> kept(batch.begin(), batch.end());
  kept.insert(kept.end(), {num_iters, 2, scores.size(-2) + scores.size(-1)});
  if (!differentiable) kept = {0};
  const at::Tensor assignments = at::empty(scores.sizes(), options);
  const at::Tensor used = at::empty(batch, options.dtype(at::kLong));
  const at::Tensor potentials = at::empty(kept, options.dtype(accumulation_dtype(scores)));
  write_outputs(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, assignments, used,
                potentials, device);
  return {assignments, used, potentials};
}

at::Tensor sinkhorn_knopp_out_cuda(const at::Tensor& scores,  // (..., N, K)
                                   double epsilon, int64_t num_iters,
                                   const OptionalTensor& sample_marginals,   // (N,) or (..., N)
                                   const OptionalTensor& cluster_marginals,  // (K,) or (..., K)
                                   std::optional<double> tolerance,
                                   const at::Tensor& out  // (..., N, K)
) {
  check_sinkhorn_knopp(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance);
  check_sinkhorn_knopp_out(scores, sample_marginals, cluster_marginals, out);
  const DeviceScope device(scores);
  const auto batch = scores.sizes().slice(0, scores.dim() - 2);
  const at::Tensor used = at::empty(batch, scores.options().dtype(at::kLong));
  const at::Tensor none = at::empty({0}, scores.options());
  write_outputs(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, out, used, none, device);
  return used;
}

at::Tensor sinkhorn_knopp_backward_cuda(const at::Tensor& grad_assignments,      // (..., N, K)
                                        const at::Tensor& scores,                // (..., N, K)
                                        const at::Tensor& used,                  // (...) int64
                                        const at::Tensor& potentials,            // (..., num_iters, 2, N + K)
                                        double epsilon,                          //
                                        const OptionalTensor& sample_marginals,  // (N,) or (..., N)
                                        const OptionalTensor& cluster_marginals  // (K,) or (..., K)
) {
  const DeviceScope device(scores);
  const at::Tensor grad_scores = at::empty(scores.sizes(), scores.options());
  if (scores.numel() == 0) return grad_scores;
  const SinkhornCall call(scores, epsilon, potentials.size(-3), sample_marginals, cluster_marginals);
  const SinkhornPlan plan = plan_sinkhorn_knopp(call.inputs());
  const DeviceMemory<SinkhornWorkspace> memory(sinkhorn_backward_bytes(call.inputs(), plan), scores.options());
  const at::Tensor grad = grad_assignments.contiguous(), counts = used.contiguous(), kept = potentials.contiguous();
  const SinkhornGradients gradients{grad.const_data_ptr(), counts.const_data_ptr<int64_t>(), kept.const_data_ptr(),
                                    grad_scores.mutable_data_ptr()};
  check_launch(launch_sinkhorn_knopp_backward(call.inputs(), plan, memory.workspace(), gradients, device.stream()));
  return grad_scores;
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) {
  m.impl("sinkhorn_knopp", sinkhorn_knopp_cuda);
  m.impl("sinkhorn_knopp.out", sinkhorn_knopp_out_cuda);
  m.impl("sinkhorn_knopp_backward", sinkhorn_knopp_backward_cuda);
}

}  // namespace deepclust

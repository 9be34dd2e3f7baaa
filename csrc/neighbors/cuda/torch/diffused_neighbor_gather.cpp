#include "neighbors/cuda/diffused_neighbor_gather.cuh"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "core/cuda/context.h"
#include "core/cuda/types.h"
#include "neighbors/diffused_neighbor_gather.h"

namespace deepclust {
namespace {

DiffusedNeighborGatherOutputs gather_step_cuda(const GatherStep& step) {
  const DeviceScope device(step.rows);
  const at::TensorOptions options = step.rows.options();
  const bool first_step = step.step == 0;
  GatherInputs inputs{};
  inputs.type = element_type(step.rows);
  inputs.walkers = step.rows.size(0) * (first_step ? step.num_samples : 1);
  inputs.depth = step.rows.size(1);
  inputs.num_samples = step.num_samples;
  inputs.walkers_of_row = first_step ? step.num_samples : 1;
  inputs.limit = step.limit;
  inputs.step = step.step;
  inputs.rows = step.rows.const_data_ptr();
  if (step.cosines.defined()) {
    inputs.width = step.cosines.size(1);
    inputs.bank = step.bank.const_data_ptr();
    inputs.cosines = step.cosines.const_data_ptr();
    inputs.candidates = step.candidates.const_data_ptr<int64_t>();
  }
  if (step.avoided.defined()) inputs.avoided = step.avoided.const_data_ptr<int64_t>();
  if (step.previous.defined()) inputs.previous = step.previous.const_data_ptr<int64_t>();
  inputs.temperature = step.temperature;
  inputs.noise_std = step.noise_std;
  inputs.seed = step.seed;
  const int64_t queries = inputs.walkers / step.num_samples;
  const at::Tensor samples = at::empty({queries, step.num_samples, inputs.depth}, options);
  const at::Tensor indices = at::empty({queries, step.num_samples}, options.dtype(at::kLong));
  const at::TensorOptions wide = options.dtype(accumulation_dtype(step.rows));
  const at::Tensor inverse_norm = step.normalize ? at::empty({queries, step.num_samples}, wide) : at::empty({0}, wide);
  if (inputs.walkers > 0) {
    check_launch(
        launch_diffused_neighbor_gather(inputs, samples.mutable_data_ptr(), indices.mutable_data_ptr<int64_t>(),
                                        step.normalize ? inverse_norm.mutable_data_ptr() : nullptr, device.stream()));
  }
  return {samples, indices, inverse_norm};
}

DiffusedNeighborGatherOutputs diffused_neighbor_gather_cuda(const at::Tensor& query,  // (B, D)
                                                            const at::Tensor& bank,   // (M, D)
                                                            const at::Tensor& seed,   // () int64 on the CPU
                                                            int64_t num_neighbors, double temperature, double noise_std,
                                                            int64_t num_steps, int64_t num_samples,
                                                            const std::optional<at::Tensor>& exclude,  // (B,) int64
                                                            const std::optional<at::Tensor>& valid,    // (M,) bool
                                                            bool normalize) {
  check_diffused_neighbor_gather(query, bank, seed, num_neighbors, temperature, noise_std, num_steps, num_samples,
                                 exclude, valid);
  return walk_to_neighbors(query, bank, seed, num_neighbors, temperature, noise_std, num_steps, num_samples, exclude,
                           valid, normalize, gather_step_cuda);
}

std::tuple<at::Tensor, at::Tensor> diffused_neighbor_gather_backward_cuda(const at::Tensor& grad_samples,  // (B, S, D)
                                                                          const at::Tensor& samples_input,
                                                                          const at::Tensor& indices,  // (B, S) int64
                                                                          const at::Tensor& inverse_norm_input,
                                                                          int64_t bank_rows, bool want_query,
                                                                          bool want_bank) {
  const at::Tensor gradient = grad_samples.contiguous(), samples = samples_input.contiguous();
  const at::Tensor inverse_norm = inverse_norm_input.contiguous();
  const bool normalize = inverse_norm.dim() == 2;
  const at::TensorOptions options = gradient.options();
  const int64_t depth = gradient.size(2);
  const at::Tensor grad_query = want_query ? at::zeros({gradient.size(0), depth}, options) : at::empty({0}, options);
  const at::Tensor grad_bank = want_bank ? at::zeros({bank_rows, depth}, options) : at::empty({0}, options);
  if (gradient.numel() == 0) return {grad_query, grad_bank};
  const auto [sorted_indices, order] = sort_by_target(indices, bank_rows);
  const DeviceScope device(gradient);
  const at::Tensor along = at::empty({normalize ? indices.numel() : 0}, inverse_norm.options());
  GatherGradientInputs inputs{};
  inputs.type = element_type(gradient);
  inputs.walkers = indices.numel();
  inputs.depth = depth;
  inputs.num_samples = indices.size(1);
  inputs.grad_samples = gradient.const_data_ptr();
  if (normalize) {
    inputs.samples = samples.const_data_ptr();
    inputs.inverse_norm = inverse_norm.const_data_ptr();
  }
  if (order.defined()) {
    inputs.sorted_indices = sorted_indices.const_data_ptr<int64_t>();
    inputs.order = order.const_data_ptr<int64_t>();
  }
  check_launch(launch_diffused_neighbor_gather_backward(
      inputs, normalize ? along.mutable_data_ptr() : nullptr, want_query ? grad_query.mutable_data_ptr() : nullptr,
      want_bank ? grad_bank.mutable_data_ptr() : nullptr, device.stream()));
  return {grad_query, grad_bank};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) {
  m.impl("diffused_neighbor_gather", diffused_neighbor_gather_cuda);
  m.impl("diffused_neighbor_gather_backward", diffused_neighbor_gather_backward_cuda);
}

}  // namespace deepclust

#include "pairs/pair_information.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "core/cuda/context.h"
#include "core/cuda/types.h"
#include "pairs/cuda/pair_information.cuh"

namespace deepclust {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_information_cuda(const at::Tensor& rows,            // (2B, E)
                                                                     const at::Tensor& weight,          // (K, E)
                                                                     const at::Tensor& teacher_rows,    // (2B, E)
                                                                     const at::Tensor& teacher_weight,  // (K, E)
                                                                     const at::Tensor& distribution,    // (K,)
                                                                     const at::Tensor& pair_weights,    // (B,)
                                                                     double beta, double temperature, bool want_rows) {
  check_pair_information(rows, weight, teacher_rows, teacher_weight, distribution, pair_weights, beta, temperature);
  const DeviceScope device(rows);
  const at::Tensor student = rows.contiguous(), student_weight = weight.contiguous();
  const at::Tensor teacher = teacher_rows.contiguous(), given_weight = teacher_weight.contiguous();
  const at::Tensor shares = distribution.contiguous(), weights = pair_weights.contiguous();
  const at::TensorOptions wide = rows.options().dtype(accumulation_dtype(rows));
  const at::Tensor information = at::empty({}, wide);
  const at::Tensor grad_rows = at::empty({want_rows ? rows.size(0) : 0, rows.size(1)}, wide);
  const at::Tensor grad_weight = at::empty({weight.size(0), weight.size(1)}, wide);
  PairInformationInputs inputs{};
  inputs.type = element_type(rows);
  inputs.pairs = weights.size(0);
  inputs.clusters = weight.size(0);
  inputs.depth = weight.size(1);
  inputs.rows = student.const_data_ptr();
  inputs.weight = student_weight.const_data_ptr();
  inputs.teacher_rows = teacher.const_data_ptr();
  inputs.teacher_weight = given_weight.const_data_ptr();
  inputs.distribution = shares.const_data_ptr();
  inputs.pair_weights = weights.const_data_ptr();
  inputs.beta = beta;
  inputs.temperature = temperature;
  const PairPlan plan = plan_pairs(inputs.pairs, inputs.clusters, device::multiprocessor_count());
  const DeviceMemory<PairWorkspace> memory(pair_information_bytes(inputs, plan), wide);
  check_launch(launch_pair_information(inputs, plan, memory.workspace(), information.mutable_data_ptr(),
                                       want_rows ? grad_rows.mutable_data_ptr() : nullptr,
                                       grad_weight.mutable_data_ptr(), device.stream()));
  return {information, grad_rows, grad_weight};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_statistics_cuda(const at::Tensor& rows,    // (2B, E)
                                                                    const at::Tensor& weight,  // (K, E)
                                                                    double temperature) {
  check_pair_statistics(rows, weight, temperature);
  const DeviceScope device(rows);
  const at::Tensor given = rows.contiguous(), head = weight.contiguous();
  const at::TensorOptions wide = rows.options().dtype(accumulation_dtype(rows));
  const at::Tensor sums = at::empty({weight.size(0)}, wide), agreement = at::empty({rows.size(0) / 2}, wide);
  const at::Tensor largest = at::empty({}, wide);
  PairStatisticsInputs inputs{};
  inputs.type = element_type(rows);
  inputs.pairs = agreement.size(0);
  inputs.clusters = weight.size(0);
  inputs.depth = weight.size(1);
  inputs.rows = given.const_data_ptr();
  inputs.weight = head.const_data_ptr();
  inputs.temperature = temperature;
  const PairPlan plan = plan_pairs(inputs.pairs, inputs.clusters, device::multiprocessor_count());
  const DeviceMemory<PairWorkspace> memory(pair_statistics_bytes(inputs, plan), wide);
  check_launch(launch_pair_statistics(inputs, plan, memory.workspace(), sums.mutable_data_ptr(),
                                      agreement.mutable_data_ptr(), largest.mutable_data_ptr(), device.stream()));
  return {sums, agreement, largest};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) {
  m.impl("pair_information", pair_information_cuda);
  m.impl("pair_statistics", pair_statistics_cuda);
}

}  // namespace deepclust

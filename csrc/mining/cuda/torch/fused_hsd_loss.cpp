#include "mining/cuda/fused_hsd_loss.cuh"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "mining/cuda/torch/mining.h"
#include "mining/fused_hsd_loss.h"
#include "mining/hsd_row.h"

namespace deepclust {
namespace {

FusedHsdLossOutputs fused_hsd_loss_cuda(const at::Tensor& teacher_input,  // (N, D)
                                        const at::Tensor& student_input,  // (N, D)
                                        double temperature, bool normalize, std::string_view reduction) {
  check_fused_hsd_loss(teacher_input, student_input, temperature, reduction);
  const DeviceScope device(teacher_input);
  const at::Tensor teacher = teacher_input.contiguous(), student = student_input.contiguous();
  const int64_t count = teacher.size(0);
  const at::TensorOptions options = teacher.options();
  const at::TensorOptions wide = options.dtype(accumulation_dtype(teacher));
  const bool per_row = reduction == "none";
  const at::Tensor index = at::empty({2, count}, options.dtype(at::kLong));
  const at::Tensor slope = at::empty({2, count}, wide), inverse_norm = at::empty({2, count}, wide);
  if (count == 0) {
    const at::Tensor none = per_row ? at::empty({0}, options) : at::zeros({}, options);
    return {none, at::zeros({kHsdStats}, wide), index, slope, inverse_norm};
  }
  const at::Tensor loss = per_row ? at::empty({count}, options) : at::empty({}, options);
  const at::Tensor stats = at::empty({kHsdStats}, wide);
  const MiningJob job(teacher, {0, count});
  check_launch(launch_fused_hsd_loss(job.plan(), teacher.const_data_ptr(), student.const_data_ptr(), temperature,
                                     normalize, loss_reduction(reduction), job.workspace(), loss.mutable_data_ptr(),
                                     stats.mutable_data_ptr(), index.mutable_data_ptr<int64_t>(),
                                     slope.mutable_data_ptr(), inverse_norm.mutable_data_ptr(), device.stream()));
  return {loss, stats, index, slope, inverse_norm};
}

std::tuple<at::Tensor, at::Tensor> fused_hsd_loss_backward_cuda(const at::Tensor& grad_loss,     // () or (N,)
                                                                const at::Tensor& teacher,       // (N, D)
                                                                const at::Tensor& student,       // (N, D)
                                                                const at::Tensor& index,         // (2, N) int64
                                                                const at::Tensor& slope,         // (2, N)
                                                                const at::Tensor& inverse_norm,  // (2, N)
                                                                bool normalize, std::string_view reduction,
                                                                bool want_teacher, bool want_student) {
  const DeviceScope device(teacher);
  const int64_t count = teacher.size(0);
  PairGradientInputs inputs{};
  for (int pair = 0; pair < 2; ++pair) {
    inputs.index[pair] = index.const_data_ptr<int64_t>() + pair * count;
    inputs.weight[pair] = grad_loss.const_data_ptr();
    inputs.weight_stride[pair] = grad_loss.dim() == 0 ? 0 : grad_loss.stride(0);
  }
  inputs.inverse_distance = slope.const_data_ptr();
  inputs.factor = reduction == "mean" ? 1.0 / static_cast<double>(count) : 1.0;
  return pair_gradient_cuda(inputs, teacher, student, inverse_norm, normalize, want_teacher, want_student, device);
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) {
  m.impl("fused_hsd_loss", fused_hsd_loss_cuda);
  m.impl("fused_hsd_loss_backward", fused_hsd_loss_backward_cuda);
}

}  // namespace deepclust

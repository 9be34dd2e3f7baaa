#include "mining/batch_hard_mining.h"

#include <torch/library.h>

#include "mining/cuda/torch/mining.h"

namespace deepclust {
namespace {

BatchHardMiningOutputs batch_hard_mining_cuda(const at::Tensor& teacher_input,  // (N, D)
                                              const at::Tensor& student_input,  // (N, D)
                                              bool normalize) {
  check_batch_hard_mining(teacher_input, student_input);
  const DeviceScope device(teacher_input);
  const at::Tensor teacher = teacher_input.contiguous(), student = student_input.contiguous();
  const int64_t count = teacher.size(0);
  const at::TensorOptions options = teacher.options();
  const at::TensorOptions wide = options.dtype(accumulation_dtype(teacher));
  const at::Tensor distance[4] = {at::empty({count}, options), at::empty({count}, options), at::empty({count}, options),
                                  at::empty({count}, options)};
  const at::Tensor positive_index = at::empty({count}, options.dtype(at::kLong));
  const at::Tensor negative_index = at::empty({count}, options.dtype(at::kLong));
  const at::Tensor inverse_distance = at::empty({4, count}, wide), inverse_norm = at::empty({2, count}, wide);
  if (count > 0) {
    const MiningJob job(teacher);
    MiningOutputs outputs{};
    outputs.positive_index = positive_index.mutable_data_ptr<int64_t>();
    outputs.negative_index = negative_index.mutable_data_ptr<int64_t>();
    for (int pair = 0; pair < 4; ++pair) outputs.distance[pair] = distance[pair].mutable_data_ptr();
    outputs.inverse_distance = inverse_distance.mutable_data_ptr();
    outputs.inverse_norm = inverse_norm.mutable_data_ptr();
    check_launch(launch_batch_hard_mining(job.plan(), teacher.const_data_ptr(), student.const_data_ptr(), normalize,
                                          job.workspace(), outputs, device.stream()));
  }
  return {distance[0],    distance[1],    distance[2],      distance[3],
          positive_index, negative_index, inverse_distance, inverse_norm};
}

std::tuple<at::Tensor, at::Tensor> batch_hard_mining_backward_cuda(
    const at::Tensor& grad_positive_distance,          // (N,)
    const at::Tensor& grad_negative_distance,          // (N,)
    const at::Tensor& grad_positive_teacher_distance,  // (N,)
    const at::Tensor& grad_negative_teacher_distance,  // (N,)
    const at::Tensor& teacher,                         // (N, D)
    const at::Tensor& student,                         // (N, D)
    const at::Tensor& positive_index,                  // (N,) int64
    const at::Tensor& negative_index,                  // (N,) int64
    const at::Tensor& inverse_distance,                // (4, N)
    const at::Tensor& inverse_norm,                    // (2, N)
    bool normalize, bool want_teacher, bool want_student) {
  const DeviceScope device(teacher);
  const at::Tensor* grads[4] = {&grad_positive_distance, &grad_negative_distance, &grad_positive_teacher_distance,
                                &grad_negative_teacher_distance};
  PairGradientInputs inputs{};
  inputs.index[0] = positive_index.const_data_ptr<int64_t>();
  inputs.index[1] = negative_index.const_data_ptr<int64_t>();
  inputs.inverse_distance = inverse_distance.const_data_ptr();
  for (int pair = 0; pair < 4; ++pair) {
    inputs.weight[pair] = grads[pair]->const_data_ptr();
    inputs.weight_stride[pair] = grads[pair]->stride(0);
  }
  inputs.factor = 1;
  return pair_gradient_cuda(inputs, teacher, student, inverse_norm, normalize, want_teacher, want_student, device);
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) {
  m.impl("batch_hard_mining", batch_hard_mining_cuda);
  m.impl("batch_hard_mining_backward", batch_hard_mining_backward_cuda);
}

}  // namespace deepclust

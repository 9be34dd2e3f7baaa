#include "mining/batch_hard_mining.h"

#include <torch/library.h>

#include "mining/cuda/torch/mining.h"

namespace deepclust {
namespace {

BatchHardMiningOutputs batch_hard_mining_cuda(const at::Tensor& teacher_input,  // (N, D)
                                              const at::Tensor& student_input,  // (N, D)
                                              bool normalize, int64_t first_row, std::optional<int64_t> num_rows) {
  check_batch_hard_mining(teacher_input, student_input);
  const DeviceScope device(teacher_input);
  const at::Tensor teacher = teacher_input.contiguous(), student = student_input.contiguous();
  const int64_t count = teacher.size(0);
  const RowRange anchors = row_range(first_row, num_rows, count);
  const at::TensorOptions options = teacher.options();
  const at::TensorOptions wide = options.dtype(accumulation_dtype(teacher));
  const at::Tensor distance[4] = {at::empty({count}, options), at::empty({count}, options), at::empty({count}, options),
                                  at::empty({count}, options)};
  const at::Tensor positive_index = at::empty({count}, options.dtype(at::kLong));
  const at::Tensor negative_index = at::empty({count}, options.dtype(at::kLong));
  const at::Tensor inverse_distance = at::empty({4, count}, wide), inverse_norm = at::empty({2, count}, wide);
  if (anchors.count == 0) {
    inverse_norm.fill_(1);  // of rows that are in no pair
  } else {
    const MiningJob job(teacher, anchors);
    MiningOutputs outputs{};
    outputs.positive_index = positive_index.mutable_data_ptr<int64_t>();
    outputs.negative_index = negative_index.mutable_data_ptr<int64_t>();
    for (int pair = 0; pair < 4; ++pair) outputs.distance[pair] = distance[pair].mutable_data_ptr();
    outputs.inverse_distance = inverse_distance.mutable_data_ptr();
    outputs.inverse_norm = inverse_norm.mutable_data_ptr();
    check_launch(launch_batch_hard_mining(job.plan(), teacher.const_data_ptr(), student.const_data_ptr(), normalize,
                                          job.workspace(), outputs, device.stream()));
  }
  const auto own = [&](const at::Tensor& values) {
    return anchors.count == count ? values
                                  : values.narrow(-1, anchors.first, anchors.count).clone(at::MemoryFormat::Contiguous);
  };
  return {own(distance[0]),    own(distance[1]),    own(distance[2]),      own(distance[3]),
          own(positive_index), own(negative_index), own(inverse_distance), inverse_norm};
}

std::tuple<at::Tensor, at::Tensor> batch_hard_mining_backward_cuda(
    const at::Tensor& grad_positive_distance,          // (R,)
    const at::Tensor& grad_negative_distance,          // (R,)
    const at::Tensor& grad_positive_teacher_distance,  // (R,)
    const at::Tensor& grad_negative_teacher_distance,  // (R,)
    const at::Tensor& teacher,                         // (N, D)
    const at::Tensor& student,                         // (N, D)
    const at::Tensor& positive_index,                  // (R,) int64
    const at::Tensor& negative_index,                  // (R,) int64
    const at::Tensor& inverse_distance,                // (4, R)
    const at::Tensor& inverse_norm,                    // (2, N)
    bool normalize, int64_t first_row, bool want_teacher, bool want_student) {
  const DeviceScope device(teacher);
  const int64_t count = teacher.size(0);
  const at::Tensor index[2] = {index_of_all(positive_index, first_row, count),
                               index_of_all(negative_index, first_row, count)};
  const at::Tensor inverse = values_of_all(inverse_distance, first_row, count);
  const at::Tensor grads[4] = {values_of_all(grad_positive_distance, first_row, count),
                               values_of_all(grad_negative_distance, first_row, count),
                               values_of_all(grad_positive_teacher_distance, first_row, count),
                               values_of_all(grad_negative_teacher_distance, first_row, count)};
  PairGradientInputs inputs{};
  for (int pair = 0; pair < 2; ++pair) inputs.index[pair] = index[pair].const_data_ptr<int64_t>();
  inputs.inverse_distance = inverse.const_data_ptr();
  for (int pair = 0; pair < 4; ++pair) {
    inputs.weight[pair] = grads[pair].const_data_ptr();
    inputs.weight_stride[pair] = grads[pair].stride(0);
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

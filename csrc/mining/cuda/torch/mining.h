// What the torch sides of batch_hard_mining and fused_hsd_loss share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <limits>
#include <tuple>

#include "core/cuda/context.h"
#include "core/cuda/types.h"
#include "core/row_range.h"
#include "mining/cuda/batch_hard_mining.cuh"
#include "mining/cuda/pair_gradient.cuh"

namespace deepclust {

// The plan for two batches on the current device, with the memory that it takes.
class MiningJob {
 public:
  MiningJob(const at::Tensor& teacher /* (N, D) */, RowRange anchors)
      : plan_(plan_mining(element_type(teacher), teacher.size(0), teacher.size(1), anchors.first,
                          anchors.first + anchors.count, device::multiprocessor_count())),
        memory_(mining_bytes(plan_), teacher.options()) {
    TORCH_CHECK_VALUE(teacher.size(0) <= std::numeric_limits<int32_t>::max(),
                      "teacher: expected at most 2^31 - 1 rows, got ", teacher.size(0));
  }

  const MiningPlan& plan() const { return plan_; }
  const MiningWorkspace& workspace() const { return memory_.workspace(); }

 private:
  MiningPlan plan_;
  DeviceMemory<MiningWorkspace> memory_;
};

// Runs launch_pair_gradient on inputs of which type, sizes, features and norms are filled in here; the gradients come
// back in the input type, empty where not wanted.
inline std::tuple<at::Tensor, at::Tensor> pair_gradient_cuda(PairGradientInputs inputs,
                                                             const at::Tensor& teacher_input,  // (N, D)
                                                             const at::Tensor& student_input,  // (N, D)
                                                             const at::Tensor& inverse_norm,   // (2, N)
                                                             bool normalize, bool want_teacher, bool want_student,
                                                             const DeviceScope& device) {
  const at::Tensor teacher = teacher_input.contiguous(), student = student_input.contiguous();
  const bool is_accumulator = teacher.scalar_type() == accumulation_dtype(teacher);
  const auto allocate = [&](bool want, at::ScalarType dtype) {
    return want ? at::empty(teacher.sizes(), teacher.options().dtype(dtype)) : at::empty({0}, teacher.options());
  };
  const at::Tensor gradient[2] = {allocate(want_teacher, teacher.scalar_type()),
                                  allocate(want_student, teacher.scalar_type())};
  if (teacher.size(0) == 0) return {gradient[0], gradient[1]};
  at::Tensor sums[2] = {gradient[0], gradient[1]};
  if (!is_accumulator) {
    sums[0] = allocate(want_teacher, at::kFloat);
    sums[1] = allocate(want_student, at::kFloat);
  }
  inputs.type = element_type(teacher);
  inputs.count = teacher.size(0);
  inputs.depth = teacher.size(1);
  inputs.teacher = teacher.const_data_ptr();
  inputs.student = student.const_data_ptr();
  inputs.inverse_norm = inverse_norm.const_data_ptr();
  inputs.normalize = normalize;
  const auto pointer = [](const at::Tensor& tensor, bool want) { return want ? tensor.mutable_data_ptr() : nullptr; };
  check_launch(launch_pair_gradient(inputs, pointer(gradient[0], want_teacher), pointer(gradient[1], want_student),
                                    pointer(sums[0], want_teacher), pointer(sums[1], want_student), device.stream()));
  return {gradient[0], gradient[1]};
}

}  // namespace deepclust

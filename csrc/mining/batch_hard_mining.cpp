#include "mining/batch_hard_mining.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <utility>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"

namespace deepclust {

void check_batch_hard_mining(const at::Tensor& teacher, const at::Tensor& student) {
  check_feature_pair(teacher, student, "teacher", "student");
}

BatchHardMiningOutputs batch_hard_mining(const at::Tensor& teacher, const at::Tensor& student, bool normalize,
                                         c10::SymInt first_row, std::optional<c10::SymInt> num_rows) {
  static const auto op = find_op<decltype(batch_hard_mining)>("deepclust_ext::batch_hard_mining");
  return op.call(teacher, student, normalize, std::move(first_row), std::move(num_rows));
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<at::Tensor, at::Tensor> batch_hard_mining_backward(const at::Tensor& grad_positive_distance,          // (R,)
                                                              const at::Tensor& grad_negative_distance,          // (R,)
                                                              const at::Tensor& grad_positive_teacher_distance,  // (R,)
                                                              const at::Tensor& grad_negative_teacher_distance,  // (R,)
                                                              const at::Tensor& teacher,           // (N, D)
                                                              const at::Tensor& student,           // (N, D)
                                                              const at::Tensor& positive_index,    // (R,) int64
                                                              const at::Tensor& negative_index,    // (R,) int64
                                                              const at::Tensor& inverse_distance,  // (4, R)
                                                              const at::Tensor& inverse_norm,      // (2, N)
                                                              bool normalize, c10::SymInt first_row, bool want_teacher,
                                                              bool want_student) {
  static const auto op = find_op<decltype(batch_hard_mining_backward)>("deepclust_ext::batch_hard_mining_backward");
  return op.call(grad_positive_distance, grad_negative_distance, grad_positive_teacher_distance,
                 grad_negative_teacher_distance, teacher, student, positive_index, negative_index, inverse_distance,
                 inverse_norm, normalize, std::move(first_row), want_teacher, want_student);
}

class BatchHardMining : public torch::autograd::Function<BatchHardMining> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& teacher, const at::Tensor& student,
                               bool normalize, c10::SymInt first_row, std::optional<c10::SymInt> num_rows) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [positive_distance, negative_distance, positive_teacher_distance, negative_teacher_distance,
                positive_index, negative_index, inverse_distance, inverse_norm] =
        batch_hard_mining(teacher, student, normalize, first_row, std::move(num_rows));
    context->save_for_backward({teacher, student, positive_index, negative_index, inverse_distance, inverse_norm});
    context->mark_non_differentiable({positive_index, negative_index, inverse_distance, inverse_norm});
    context->saved_data["normalize"] = normalize;
    context->saved_data["first_row"] = std::move(first_row);
    return {positive_distance, negative_distance, positive_teacher_distance, negative_teacher_distance,
            positive_index,    negative_index,    inverse_distance,          inverse_norm};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const bool want_teacher = context->needs_input_grad(0);
    const bool want_student = context->needs_input_grad(1);
    const auto [grad_teacher, grad_student] =
        batch_hard_mining_backward(grads[0], grads[1], grads[2], grads[3], saved[0], saved[1], saved[2], saved[3],
                                   saved[4], saved[5], context->saved_data["normalize"].toBool(),
                                   context->saved_data["first_row"].toSymInt(), want_teacher, want_student);
    const at::Tensor none;
    return {want_teacher ? grad_teacher : none, want_student ? grad_student : none, none, none, none};
  }
};

BatchHardMiningOutputs batch_hard_mining_autograd(const at::Tensor& teacher, const at::Tensor& student, bool normalize,
                                                  c10::SymInt first_row, std::optional<c10::SymInt> num_rows) {
  if (!needs_graph(teacher, student)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return batch_hard_mining(teacher, student, normalize, std::move(first_row), std::move(num_rows));
  }
  const variable_list outputs =
      BatchHardMining::apply(teacher, student, normalize, std::move(first_row), std::move(num_rows));
  return {outputs[0], outputs[1], outputs[2], outputs[3], outputs[4], outputs[5], outputs[6], outputs[7]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "batch_hard_mining(Tensor teacher, Tensor student, bool normalize=True, SymInt first_row=0, "
      "SymInt? num_rows=None) -> (Tensor positive_distance, Tensor negative_distance, "
      "Tensor positive_teacher_distance, Tensor negative_teacher_distance, "
      "Tensor positive_index, Tensor negative_index, Tensor inverse_distance, Tensor inverse_norm)");
  m.def(
      "batch_hard_mining_backward(Tensor grad_positive_distance, Tensor grad_negative_distance, "
      "Tensor grad_positive_teacher_distance, Tensor grad_negative_teacher_distance, Tensor teacher, Tensor student, "
      "Tensor positive_index, Tensor negative_index, Tensor inverse_distance, Tensor inverse_norm, bool normalize, "
      "SymInt first_row, bool want_teacher, bool want_student) -> (Tensor grad_teacher, Tensor grad_student)");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) {
  m.impl("batch_hard_mining", batch_hard_mining_autograd);
  m.impl("batch_hard_mining_backward", torch::autograd::autogradNotImplementedFallback());
}

DEEPCLUST_AUTOCAST(batch_hard_mining)

}  // namespace deepclust

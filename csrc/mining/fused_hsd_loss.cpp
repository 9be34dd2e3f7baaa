#include "mining/fused_hsd_loss.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"

namespace deepclust {

void check_fused_hsd_loss(const at::Tensor& teacher, const at::Tensor& student, double temperature,
                          std::string_view reduction) {
  check_feature_pair(teacher, student, "teacher", "student");
  check_positive(temperature, "temperature");
  check_reduction(reduction);
}

FusedHsdLossOutputs fused_hsd_loss(const at::Tensor& teacher, const at::Tensor& student, double temperature,
                                   bool normalize, std::string_view reduction) {
  static const auto op = find_op<decltype(fused_hsd_loss)>("deepclust_ext::fused_hsd_loss");
  return op.call(teacher, student, temperature, normalize, reduction);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<at::Tensor, at::Tensor> fused_hsd_loss_backward(const at::Tensor& grad_loss,     // () or (N,)
                                                           const at::Tensor& teacher,       // (N, D)
                                                           const at::Tensor& student,       // (N, D)
                                                           const at::Tensor& index,         // (2, N) int64
                                                           const at::Tensor& slope,         // (2, N)
                                                           const at::Tensor& inverse_norm,  // (2, N)
                                                           bool normalize, std::string_view reduction,
                                                           bool want_teacher, bool want_student) {
  static const auto op = find_op<decltype(fused_hsd_loss_backward)>("deepclust_ext::fused_hsd_loss_backward");
  return op.call(grad_loss, teacher, student, index, slope, inverse_norm, normalize, reduction, want_teacher,
                 want_student);
}

class FusedHsdLoss : public torch::autograd::Function<FusedHsdLoss> {
 public:
  // Only the loss goes through the graph; `outputs` receives the rest, which spares small calls their wrapping.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& teacher, const at::Tensor& student,
                            double temperature, bool normalize, std::string_view reduction,
                            FusedHsdLossOutputs* outputs) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    *outputs = fused_hsd_loss(teacher, student, temperature, normalize, reduction);
    const auto& [loss, stats, index, slope, inverse_norm] = *outputs;
    context->save_for_backward({teacher, student, index, slope, inverse_norm});
    context->saved_data["normalize"] = normalize;
    context->saved_data["reduction"] = std::string(reduction);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const bool want_teacher = context->needs_input_grad(0);
    const bool want_student = context->needs_input_grad(1);
    const auto [grad_teacher, grad_student] = fused_hsd_loss_backward(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], context->saved_data["normalize"].toBool(),
        context->saved_data["reduction"].toStringView(), want_teacher, want_student);
    return {want_teacher ? grad_teacher : at::Tensor(),
            want_student ? grad_student : at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
  }
};

FusedHsdLossOutputs fused_hsd_loss_autograd(const at::Tensor& teacher, const at::Tensor& student, double temperature,
                                            bool normalize, std::string_view reduction) {
  if (!needs_graph(teacher, student)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return fused_hsd_loss(teacher, student, temperature, normalize, reduction);
  }
  FusedHsdLossOutputs outputs;
  std::get<0>(outputs) = FusedHsdLoss::apply(teacher, student, temperature, normalize, reduction, &outputs);
  return outputs;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "fused_hsd_loss(Tensor teacher, Tensor student, float temperature=0.5, bool normalize=True, "
      "str reduction='mean') -> (Tensor loss, Tensor stats, Tensor index, Tensor slope, Tensor inverse_norm)");
  m.def(
      "fused_hsd_loss_backward(Tensor grad_loss, Tensor teacher, Tensor student, Tensor index, Tensor slope, "
      "Tensor inverse_norm, bool normalize, str reduction, bool want_teacher, bool want_student) -> "
      "(Tensor grad_teacher, Tensor grad_student)");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) {
  m.impl("fused_hsd_loss", fused_hsd_loss_autograd);
  m.impl("fused_hsd_loss_backward", torch::autograd::autogradNotImplementedFallback());
}

DEEPCLUST_AUTOCAST(fused_hsd_loss)

}  // namespace deepclust

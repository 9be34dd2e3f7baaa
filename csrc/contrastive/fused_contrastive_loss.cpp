#include "contrastive/fused_contrastive_loss.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <string>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"

namespace deepclust {

using OptionalTensor = std::optional<at::Tensor>;

void check_fused_contrastive_loss(const at::Tensor& z_a, const at::Tensor& z_b, double temperature, double hardness,
                                  double debias, const OptionalTensor& class_a, const OptionalTensor& class_b,
                                  double class_temperature, const OptionalTensor& queue,
                                  const OptionalTensor& class_queue, std::string_view reduction) {
  check_feature_pair(z_a, z_b, "z_a", "z_b");
  check_positive(temperature, "temperature");
  TORCH_CHECK_VALUE(std::isfinite(hardness) && hardness >= 0, "hardness: expected a finite number of at least 0, got ",
                    hardness);
  TORCH_CHECK_VALUE(debias >= 0 && debias < 1, "debias: expected a number in [0, 1), got ", debias);
  check_positive(class_temperature, "class_temperature");
  check_reduction(reduction);
  if (queue) check_like(*queue, z_a, "queue", "z_a", queue->sym_size(0), z_a.sym_size(1));
  if (!class_a) {
    TORCH_CHECK_VALUE(!class_b, "class_b: expected None, because class_a is None, got a tensor");
    TORCH_CHECK_VALUE(!class_queue, "class_queue: expected None, because class_a is None, got a tensor");
    return;
  }
  TORCH_CHECK_VALUE(class_a->dim() == 2 && class_a->sym_size(1) > 0, "class_a: expected shape (B, K) with K > 0, got ",
                    class_a->sym_sizes());
  check_like(*class_a, z_a, "class_a", "z_a", z_a.sym_size(0), class_a->sym_size(1));
  TORCH_CHECK_VALUE(class_b, "class_b: expected a tensor, because class_a is given, got None");
  TORCH_CHECK_VALUE(
      class_queue.has_value() == queue.has_value(), "class_queue: expected ",
      queue ? "a tensor, because queue and class_a are given, got None" : "None, because queue is None, got a tensor");
  check_like(*class_b, z_a, "class_b", "z_a", z_a.sym_size(0), class_a->sym_size(1));
  if (class_queue) check_like(*class_queue, z_a, "class_queue", "z_a", queue->sym_size(0), class_a->sym_size(1));
}

FusedContrastiveLossOutputs fused_contrastive_loss(const at::Tensor& z_a, const at::Tensor& z_b, double temperature,
                                                   double hardness, double debias, const OptionalTensor& class_a,
                                                   const OptionalTensor& class_b, double class_temperature,
                                                   const OptionalTensor& queue, const OptionalTensor& class_queue,
                                                   bool normalize, std::string_view reduction, bool keep_gradient) {
  static const auto op = find_op<decltype(fused_contrastive_loss)>("deepclust_ext::fused_contrastive_loss");
  return op.call(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature, queue, class_queue,
                 normalize, reduction, keep_gradient);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr size_t kInputs = 6;  // that can have a gradient: z_a, z_b, class_a, class_b, queue, class_queue

FusedContrastiveLossGradients fused_contrastive_loss_backward(
    const at::Tensor& grad_loss,        // () or (anchors,)
    const at::Tensor& z_a,              // (B, D)
    const at::Tensor& z_b,              // (B, D)
    const at::Tensor& row_values,       // (kContrastiveValues, anchors)
    const at::Tensor& anchor_gradient,  // (anchors, D + K) or empty
    double temperature, double hardness,
    const OptionalTensor& class_a,  // (B, K)
    const OptionalTensor& class_b,  // (B, K)
    double class_temperature,
    const OptionalTensor& queue,        // (M, D)
    const OptionalTensor& class_queue,  // (M, K)
    bool normalize, std::string_view reduction, std::array<bool, kInputs> output_mask) {
  static const auto op =
      find_op<decltype(fused_contrastive_loss_backward)>("deepclust_ext::fused_contrastive_loss_backward");
  return op.call(grad_loss, z_a, z_b, row_values, anchor_gradient, temperature, hardness, class_a, class_b,
                 class_temperature, queue, class_queue, normalize, reduction, output_mask);
}

OptionalTensor or_none(const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

class FusedContrastiveLoss : public torch::autograd::Function<FusedContrastiveLoss> {
 public:
  // Only the loss goes through the graph; `outputs` receives the rest.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& z_a, const at::Tensor& z_b, double temperature,
                            double hardness, double debias, const OptionalTensor& class_a,
                            const OptionalTensor& class_b, double class_temperature, const OptionalTensor& queue,
                            const OptionalTensor& class_queue, bool normalize, std::string_view reduction,
                            bool keep_gradient, FusedContrastiveLossOutputs* outputs) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    *outputs = fused_contrastive_loss(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature,
                                      queue, class_queue, normalize, reduction, keep_gradient);
    const auto& [loss, row_values, anchor_gradient] = *outputs;
    const bool keeps = anchor_gradient.dim() == 2;  // then nothing reads the queue again, which may change at once
    context->save_for_backward({z_a, z_b, or_undefined(class_a), or_undefined(class_b),
                                keeps ? at::Tensor() : or_undefined(queue),
                                keeps ? at::Tensor() : or_undefined(class_queue), row_values, anchor_gradient});
    context->saved_data["temperature"] = temperature;
    context->saved_data["hardness"] = hardness;
    context->saved_data["class_temperature"] = class_temperature;
    context->saved_data["normalize"] = normalize;
    context->saved_data["reduction"] = std::string(reduction);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    std::array<bool, kInputs> wanted{};
    for (size_t input = 0, edge = 0; input < kInputs; ++input) {  // an absent tensor has no edge
      wanted[input] = saved[input].defined() && context->needs_input_grad(edge++);
    }
    const auto& data = context->saved_data;
    const auto gradients = fused_contrastive_loss_backward(
        grads[0], saved[0], saved[1], saved[6], saved[7], data.at("temperature").toDouble(),
        data.at("hardness").toDouble(), or_none(saved[2]), or_none(saved[3]), data.at("class_temperature").toDouble(),
        or_none(saved[4]), or_none(saved[5]), data.at("normalize").toBool(), data.at("reduction").toStringView(),
        wanted);
    const auto [grad_z_a, grad_z_b, grad_class_a, grad_class_b, grad_queue, grad_class_queue] = gradients;
    const auto want = [&wanted](size_t input, const at::Tensor& gradient) {
      return wanted[input] ? gradient : at::Tensor();
    };
    const at::Tensor none;
    return {want(0, grad_z_a),
            want(1, grad_z_b),
            none,
            none,
            none,
            want(2, grad_class_a),
            want(3, grad_class_b),
            none,
            want(4, grad_queue),
            want(5, grad_class_queue),
            none,
            none,
            none,
            none};
  }
};

FusedContrastiveLossOutputs fused_contrastive_loss_autograd(
    const at::Tensor& z_a, const at::Tensor& z_b, double temperature, double hardness, double debias,
    const OptionalTensor& class_a, const OptionalTensor& class_b, double class_temperature, const OptionalTensor& queue,
    const OptionalTensor& class_queue, bool normalize, std::string_view reduction, bool keep_gradient) {
  if (!needs_graph(z_a, z_b, or_undefined(class_a), or_undefined(class_b), or_undefined(queue),
                   or_undefined(class_queue))) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return fused_contrastive_loss(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature, queue,
                                  class_queue, normalize, reduction, keep_gradient);
  }
  FusedContrastiveLossOutputs outputs;
  std::get<0>(outputs) =
      FusedContrastiveLoss::apply(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature, queue,
                                  class_queue, normalize, reduction, keep_gradient, &outputs);
  return outputs;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "fused_contrastive_loss(Tensor z_a, Tensor z_b, float temperature=0.5, float hardness=0.0, float debias=0.0, "
      "Tensor? class_a=None, Tensor? class_b=None, float class_temperature=1.0, Tensor? queue=None, "
      "Tensor? class_queue=None, bool normalize=True, str reduction='mean', bool keep_gradient=False) -> (Tensor loss, "
      "Tensor row_values, Tensor anchor_gradient)");
  m.def(
      "fused_contrastive_loss.log_sums(Tensor z_a, Tensor z_b, float temperature, float hardness, Tensor? class_a, "
      "Tensor? class_b, float class_temperature, Tensor? queue, Tensor? class_queue, bool normalize) -> Tensor "
      "log_sums");
  m.def(
      "fused_contrastive_loss_backward(Tensor grad_loss, Tensor z_a, Tensor z_b, Tensor row_values, Tensor "
      "anchor_gradient, float temperature, "
      "float hardness, Tensor? class_a, Tensor? class_b, float class_temperature, Tensor? queue, Tensor? class_queue, "
      "bool normalize, str reduction, bool[6] output_mask) -> (Tensor grad_z_a, Tensor grad_z_b, Tensor grad_class_a, "
      "Tensor grad_class_b, Tensor grad_queue, Tensor grad_class_queue)");
  m.def(
      "fused_contrastive_loss_backward.log_sums(Tensor row_values, Tensor z_a, Tensor z_b, float temperature, "
      "float hardness, Tensor? class_a, Tensor? class_b, float class_temperature, Tensor? queue, Tensor? class_queue, "
      "bool normalize, bool[6] output_mask) -> (Tensor grad_z_a, Tensor grad_z_b, Tensor grad_class_a, "
      "Tensor grad_class_b, Tensor grad_queue, Tensor grad_class_queue)");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) {
  m.impl("fused_contrastive_loss", fused_contrastive_loss_autograd);
  m.impl("fused_contrastive_loss.log_sums", torch::autograd::autogradNotImplementedFallback());
  m.impl("fused_contrastive_loss_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("fused_contrastive_loss_backward.log_sums", torch::autograd::autogradNotImplementedFallback());
}

DEEPCLUST_AUTOCAST(fused_contrastive_loss)

}  // namespace deepclust

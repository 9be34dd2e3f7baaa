#include "contrastive/fused_contrastive_loss.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <limits>

#include "contrastive/cuda/fused_contrastive_loss.cuh"
#include "core/cuda/context.h"
#include "core/cuda/types.h"

namespace deepclust {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Whether torch may round float32 to tf32 or bfloat16 in its own products.
bool allows_reduced_precision() {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
  const at::Float32Precision precision =
      at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
  return precision == at::Float32Precision::TF32 || precision == at::Float32Precision::BF16;
#else
  try {
    return at::globalContext().float32MatmulPrecision() != at::Float32MatmulPrecision::HIGHEST;
  } catch (const c10::Error&) {  // raised after the setting was made through torch's newer interface
    return false;
  }
#endif
}

// The inputs of one call, contiguous, as the launch functions want them.
class ContrastiveCall {
 public:
  ContrastiveCall(const at::Tensor& z_a, const at::Tensor& z_b, double temperature, double hardness, double debias,
                  const OptionalTensor& class_a, const OptionalTensor& class_b, double class_temperature,
                  const OptionalTensor& queue, const OptionalTensor& class_queue, bool normalize)
      : tensors_{z_a.contiguous(),    z_b.contiguous(),  contiguous(class_a),
                 contiguous(class_b), contiguous(queue), contiguous(class_queue)} {
    inputs_.type = element_type(z_a);
    inputs_.two_views = !queue;
    inputs_.batch = z_a.size(0);
    inputs_.queue = queue ? queue->size(0) : 0;
    inputs_.depth = z_a.size(1);
    inputs_.classes = class_a ? class_a->size(1) : 0;
    for (int group = 0; group < 3; ++group) {
      constexpr int kFeatures[3] = {0, 1, 4}, kClasses[3] = {2, 3, 5};
      inputs_.features[group] = pointer(tensors_[kFeatures[group]]);
      inputs_.class_vectors[group] = pointer(tensors_[kClasses[group]]);
    }
    const int64_t negatives = queue ? inputs_.queue : std::max<int64_t>(2 * inputs_.batch - 2, 0);
    inputs_.options = {temperature, hardness, debias, class_temperature, negatives};
    inputs_.normalize = normalize;
    inputs_.reduced_precision = inputs_.type == ElementType::kF32 && allows_reduced_precision();
    TORCH_CHECK_VALUE(2 * inputs_.batch + inputs_.queue <= std::numeric_limits<int32_t>::max(),
                      "z_a: expected at most 2^31 - 1 rows in both views and the queue, got ",
                      2 * inputs_.batch + inputs_.queue);
  }

  const ContrastiveInputs& inputs() const { return inputs_; }
  const at::Tensor& tensor(int input) const { return tensors_[input]; }

 private:
  static at::Tensor contiguous(const OptionalTensor& tensor) { return tensor ? tensor->contiguous() : at::Tensor(); }
  static const void* pointer(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

  at::Tensor tensors_[kContrastiveInputs];
  ContrastiveInputs inputs_{};
};

FusedContrastiveLossOutputs fused_contrastive_loss_cuda(const at::Tensor& z_a,  // (B, D)
                                                        const at::Tensor& z_b,  // (B, D)
                                                        double temperature, double hardness, double debias,
                                                        const OptionalTensor& class_a,  // (B, K)
                                                        const OptionalTensor& class_b,  // (B, K)
                                                        double class_temperature,
                                                        const OptionalTensor& queue,        // (M, D)
                                                        const OptionalTensor& class_queue,  // (M, K)
                                                        bool normalize, std::string_view reduction,
                                                        bool /* keep_gradient */) {
  check_fused_contrastive_loss(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature, queue,
                               class_queue, reduction);
  const DeviceScope device(z_a);
  const ContrastiveCall call(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature, queue,
                             class_queue, normalize);
  const int64_t anchors = call.inputs().anchors();
  const at::TensorOptions options = z_a.options();
  const at::Tensor loss = reduction == "none" ? at::empty({anchors}, options) : at::empty({}, options);
  const at::Tensor row_values = at::empty({kContrastiveValues, anchors}, options.dtype(accumulation_dtype(z_a)));
  const at::Tensor anchor_gradient = at::empty({0}, row_values.options());  // the backward pass computes scores again
  if (anchors == 0) return {at::zeros_like(loss), row_values, anchor_gradient};
  const ContrastivePlan plan = plan_contrastive_loss(call.inputs(), device::multiprocessor_count());
  const DeviceMemory<ContrastiveWorkspace> memory(contrastive_bytes(call.inputs(), plan, false), options);
  check_launch(launch_fused_contrastive_loss(call.inputs(), plan, memory.workspace(), loss_reduction(reduction),
                                             loss.mutable_data_ptr(), row_values.mutable_data_ptr(), device.stream()));
  return {loss, row_values, anchor_gradient};
}

FusedContrastiveLossGradients fused_contrastive_loss_backward_cuda(
    const at::Tensor& grad_loss,   // () or (anchors,)
    const at::Tensor& z_a,         // (B, D)
    const at::Tensor& z_b,         // (B, D)
    const at::Tensor& row_values,  // (kContrastiveValues, anchors)
    const at::Tensor& /* anchor_gradient */, double temperature, double hardness,
    const OptionalTensor& class_a,  // (B, K)
    const OptionalTensor& class_b,  // (B, K)
    double class_temperature,
    const OptionalTensor& queue,        // (M, D)
    const OptionalTensor& class_queue,  // (M, K)
    bool normalize, std::string_view reduction, std::array<bool, kContrastiveInputs> output_mask) {
  const DeviceScope device(z_a);
  const ContrastiveCall call(z_a, z_b, temperature, hardness, 0, class_a, class_b, class_temperature, queue,
                             class_queue, normalize);
  const ContrastiveInputs& inputs = call.inputs();
  const int64_t anchors = inputs.anchors();
  at::Tensor gradient[kContrastiveInputs];
  bool wanted[kContrastiveInputs] = {}, any = false;
  ContrastiveGradients gradients{};
  for (int input = 0; input < kContrastiveInputs; ++input) {
    const at::Tensor& tensor = call.tensor(input);
    wanted[input] = output_mask[input] && tensor.defined();
    any = any || wanted[input];
    gradient[input] = !wanted[input] ? at::empty({0}, z_a.options())
                      : anchors == 0 ? at::zeros_like(tensor)
                                     : at::empty(tensor.sizes(), tensor.options());
    if (wanted[input]) gradients.gradient[input] = gradient[input].mutable_data_ptr();
  }
  if (any && anchors > 0) {
    gradients.grad_loss = grad_loss.const_data_ptr();
    gradients.grad_stride = grad_loss.dim() == 0 ? 0 : grad_loss.stride(0);
    gradients.factor = reduction == "mean" ? 1.0 / static_cast<double>(anchors) : 1.0;
    gradients.row_values = row_values.const_data_ptr();
    const ContrastivePlan plan = plan_contrastive_gradient(inputs, wanted, device::multiprocessor_count());
    const DeviceMemory<ContrastiveWorkspace> memory(contrastive_bytes(inputs, plan, true), z_a.options());
    check_launch(launch_fused_contrastive_loss_backward(inputs, plan, memory.workspace(), gradients, device.stream()));
  }
  return {gradient[0], gradient[1], gradient[2], gradient[3], gradient[4], gradient[5]};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) {
  m.impl("fused_contrastive_loss", fused_contrastive_loss_cuda);
  m.impl("fused_contrastive_loss_backward", fused_contrastive_loss_backward_cuda);
}

}  // namespace deepclust

#include "views/augment_views.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"

namespace deepclust {

using OptionalTensor = std::optional<at::Tensor>;

namespace {

void check_images(at::TensorList images) {
  TORCH_CHECK_VALUE(!images.empty(), "images: expected tensors (n, C, H, W), got none");
  const at::Tensor& first = images[0];
  for (const at::Tensor& part : images) {
    TORCH_CHECK_VALUE(part.dim() == 4 && part.sym_size(1) >= 1 && part.sym_size(1) <= kMaxAugmentChannels &&
                          part.sym_size(2) >= 1 && part.sym_size(3) >= 1,
                      "images: expected shape (n, C, H, W) with 1 to ", kMaxAugmentChannels,
                      " channels and at least one pixel, got ", part.sym_sizes());
    const at::ScalarType dtype = part.scalar_type();
    if (dtype != at::kByte && dtype != at::kUInt16) check_dtype(part, "images");
    TORCH_CHECK_TYPE(dtype == first.scalar_type(), "images: expected one dtype, got ", first.scalar_type(), " and ",
                     dtype);
    TORCH_CHECK_VALUE(part.sym_size(1) == first.sym_size(1), "images: expected one number of channels, got ",
                      first.sym_size(1), " and ", part.sym_size(1));
    TORCH_CHECK_VALUE(part.device() == first.device(), "images: expected one device, got ", first.device(), " and ",
                      part.device());
  }
}

// A parameter of every image: `shape` after the number of images, -1 for any length.
void check_parameter(const OptionalTensor& tensor, const char* name, const at::Tensor& like, const c10::SymInt& count,
                     at::IntArrayRef shape, at::ScalarType dtype) {
  if (!tensor) return;
  bool fits = tensor->dim() == static_cast<int64_t>(shape.size()) + 1 && tensor->sym_size(0) == count;
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 || tensor->sym_size(static_cast<int64_t>(i) + 1) == shape[i];
  }
  TORCH_CHECK_VALUE(fits, name, ": expected shape (", count, ", ", shape, ") with -1 for any length, got ",
                    tensor->sym_sizes());
  TORCH_CHECK_TYPE(tensor->scalar_type() == dtype, name, ": expected dtype ", dtype, ", got ", tensor->scalar_type());
  TORCH_CHECK_VALUE(tensor->device() == like.device(), name, ": expected device ", like.device(), " like images, got ",
                    tensor->device());
}

}  // namespace

void check_augment_views(at::TensorList images, at::IntArrayRef size, const OptionalTensor& boxes,
                         const OptionalTensor& flips, const OptionalTensor& matrices, const OptionalTensor& steps,
                         const OptionalTensor& strengths, int64_t blur_kernel, std::optional<at::ArrayRef<double>> mean,
                         std::optional<at::ArrayRef<double>> std, at::ScalarType dtype) {
  check_images(images);
  const at::Tensor& first = images[0];
  TORCH_CHECK_VALUE(size.size() == 2 && size[0] >= 1 && size[1] >= 1,
                    "size: expected a positive height and width, got ", size);
  c10::SymInt count = 0;
  for (const at::Tensor& part : images) count += part.sym_size(0);
  check_parameter(boxes, "boxes", first, count, {4}, at::kLong);
  check_parameter(flips, "flips", first, count, {}, at::kBool);
  check_parameter(matrices, "matrices", first, count, {2, 3}, at::kFloat);
  check_parameter(steps, "steps", first, count, {-1}, at::kLong);
  check_parameter(strengths, "strengths", first, count, {-1}, at::kFloat);
  TORCH_CHECK_VALUE(steps.has_value() == strengths.has_value(), "strengths: expected one for every step");
  if (steps) {
    TORCH_CHECK_VALUE(steps->sym_sizes() == strengths->sym_sizes(), "strengths: expected shape ", steps->sym_sizes(),
                      " like steps, got ", strengths->sym_sizes());
  }
  TORCH_CHECK_VALUE(blur_kernel >= 1 && blur_kernel % 2 == 1,
                    "blur_kernel: expected an odd number of pixels above 0, got ", blur_kernel);
  TORCH_CHECK_VALUE(mean.has_value() == std.has_value(), "mean, std: expected both or neither");
  for (const auto& [name, numbers] : {std::pair{"mean", mean}, std::pair{"std", std}}) {
    if (!numbers) continue;
    TORCH_CHECK_VALUE(static_cast<int64_t>(numbers->size()) == first.sym_size(1), name, ": expected ",
                      first.sym_size(1), " numbers, one for each channel, got ", numbers->size());
  }
  if (std) {
    for (const double deviation : *std) check_positive(deviation, "std");
  }
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
                   "dtype: expected float32, float16 or bfloat16, got ", dtype);
}

at::Tensor augment_views(at::TensorList images, c10::SymIntArrayRef size, const OptionalTensor& boxes,
                         const OptionalTensor& flips, const OptionalTensor& matrices, const OptionalTensor& steps,
                         const OptionalTensor& strengths, c10::SymInt blur_kernel,
                         std::optional<at::ArrayRef<double>> mean, std::optional<at::ArrayRef<double>> std,
                         at::ScalarType dtype, bool channels_last) {
  static const auto op = find_op<decltype(augment_views)>("deepclust_ext::augment_views");
  return op.call(images, size, boxes, flips, matrices, steps, strengths, std::move(blur_kernel), mean, std, dtype,
                 channels_last);
}

namespace {

at::Tensor augment_views_autograd(at::TensorList images, c10::SymIntArrayRef size, const OptionalTensor& boxes,
                                  const OptionalTensor& flips, const OptionalTensor& matrices,
                                  const OptionalTensor& steps, const OptionalTensor& strengths, c10::SymInt blur_kernel,
                                  std::optional<at::ArrayRef<double>> mean, std::optional<at::ArrayRef<double>> std,
                                  at::ScalarType dtype, bool channels_last) {
  for (const at::Tensor& part : images) check_no_tangent("augment_views", part);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return augment_views(images, size, boxes, flips, matrices, steps, strengths, std::move(blur_kernel), mean, std, dtype,
                       channels_last);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "augment_views(Tensor[] images, SymInt[2] size, Tensor? boxes=None, Tensor? flips=None, Tensor? matrices=None, "
      "Tensor? steps=None, Tensor? strengths=None, SymInt blur_kernel=23, float[]? mean=None, float[]? std=None, "
      "ScalarType dtype=float32, bool channels_last=False) -> Tensor");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) { m.impl("augment_views", augment_views_autograd); }

}  // namespace deepclust

#include "views/augment_views.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "core/cuda/context.h"
#include "core/cuda/types.h"
#include "views/cuda/augment_views.cuh"

namespace deepclust {
namespace {

PixelType pixel_type(at::ScalarType type) {
  switch (type) {
    case at::kByte:
      return PixelType::kU8;
    case at::kUInt16:
      return PixelType::kU16;
    case at::kHalf:
      return PixelType::kF16;
    case at::kBFloat16:
      return PixelType::kBf16;
    case at::kDouble:
      return PixelType::kF64;
    default:
      return PixelType::kF32;
  }
}

AugmentImage image_of(const at::Tensor& part, int64_t place) {
  const auto* first = static_cast<const char*>(part.const_data_ptr());
  return {first + place * part.stride(0) * static_cast<int64_t>(part.element_size()),
          {part.stride(1), part.stride(2), part.stride(3)},
          part.size(2),
          part.size(3)};
}

// Where the images lie, (B,) AugmentImage on the device. From pinned memory, which torch keeps until the copy is done.
at::Tensor list_images(at::TensorList images, int64_t count) {
  const at::Device device = images[0].device();
  const auto bytes = count * static_cast<int64_t>(sizeof(AugmentImage));
  const at::Tensor list = at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(device.is_cuda()));
  auto* entry = reinterpret_cast<AugmentImage*>(list.mutable_data_ptr<uint8_t>());
  for (const at::Tensor& part : images) {
    for (int64_t place = 0; place < part.size(0); ++place) *entry++ = image_of(part, place);
  }
  return list.to(device, /*non_blocking=*/true);
}

at::Tensor augment_views_cuda(at::TensorList images, at::IntArrayRef size, const std::optional<at::Tensor>& boxes,
                              const std::optional<at::Tensor>& flips, const std::optional<at::Tensor>& matrices,
                              const std::optional<at::Tensor>& steps, const std::optional<at::Tensor>& strengths,
                              int64_t blur_kernel, std::optional<at::ArrayRef<double>> mean,
                              std::optional<at::ArrayRef<double>> std, at::ScalarType dtype, bool channels_last) {
  check_augment_views(images, size, boxes, flips, matrices, steps, strengths, blur_kernel, mean, std, dtype);
  const at::Tensor& first = images[0];
  AugmentInputs inputs{};
  for (const at::Tensor& part : images) inputs.count += part.size(0);
  const bool listed = images.size() > 1 && inputs.count > 0;
  const at::Tensor list = listed ? list_images(images, inputs.count) : at::Tensor();
  const auto dense = [](const std::optional<at::Tensor>& tensor) {
    return tensor ? tensor->contiguous() : at::Tensor();
  };
  const at::Tensor own_boxes = dense(boxes), own_flips = dense(flips), own_matrices = dense(matrices),
                   own_steps = dense(steps), own_strengths = dense(strengths);
  const DeviceScope device(first);
  const at::Tensor views = at::empty({inputs.count, first.size(1), size[0], size[1]}, first.options().dtype(dtype),
                                     channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  if (inputs.count == 0) return views;
  inputs.type = pixel_type(first.scalar_type());
  inputs.channels = first.size(1);
  inputs.height = size[0];
  inputs.width = size[1];
  if (listed) {
    inputs.images = static_cast<const AugmentImage*>(list.const_data_ptr());
  } else {
    inputs.first = image_of(first, 0);
    inputs.image_stride = first.stride(0);
  }
  if (boxes) inputs.boxes = own_boxes.const_data_ptr<int64_t>();
  if (flips) inputs.flips = own_flips.const_data_ptr<bool>();
  if (matrices) inputs.matrices = own_matrices.const_data_ptr<float>();
  if (steps) {
    inputs.steps = own_steps.const_data_ptr<int64_t>();
    inputs.strengths = own_strengths.const_data_ptr<float>();
    inputs.num_steps = own_steps.size(1);
  }
  inputs.blur_kernel = blur_kernel;
  inputs.normalize = mean.has_value();
  if (mean) {
    std::copy(mean->begin(), mean->end(), inputs.mean);
    std::copy(std->begin(), std->end(), inputs.std);
  }
  AugmentViews output{element_type(views), views.mutable_data_ptr(), {}};
  std::copy(views.strides().begin(), views.strides().end(), output.strides);
  const AugmentPlan plan = plan_augment_views(inputs, device::multiprocessor_count());
  const DeviceMemory<AugmentWorkspace> memory(augment_views_bytes(inputs, plan), first.options());
  check_launch(launch_augment_views(inputs, plan, memory.workspace(), output, device.stream()));
  return views;
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) { m.impl("augment_views", augment_views_cuda); }

}  // namespace deepclust

// Views of images, each made by one thread in planes of float32 of its own.
//
// Resize: torch's weights, rows first. A row of the crop is converted, then every pixel of the view takes its few
// pixels of four rows at a time; a flip is the order of that table. The columns follow along vectors.
// Steps: those that change each pixel alone are done one after the other on strips that stay in the first cache,
// and the last strips go straight into the result. What needs the whole image first (contrast its mean, autocontrast
// its extremes) begins a new pass; blur, sharpness, equalize and moves are passes of their own.
// Blur: rows, then columns, both along vectors; equal weights are multiplied once, with the sum of their two pixels.
//
// Sums run over lanes of a fixed number and strips in their order, so they depend neither on the threads nor on the
// width of vectors. An image takes no memory but the scratch of its thread.
#include "views/augment_views.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/cpu/scratch.h"
#include "core/host_device.h"

namespace deepclust {
namespace {

constexpr int64_t kViewSlack = 64;      // floats behind every plane and row that vectors may read and write
constexpr int64_t kResizeRows = 4;      // of the crop at a time
constexpr float kNegligible = 1e-9f;    // weight of a blur, by the one in the middle
constexpr int64_t kStripPixels = 1024;  // whose steps are done together: three channels stay in the first cache
constexpr double kPi = 3.14159265358979323846;

// The same for all views.
struct ViewRecipe {
  int64_t channels, height, width, stride;  // stride: from plane to plane
  int64_t num_steps, blur_kernel;
  float white;                      // what 1 is in the images
  const float *mean, *inverse_std;  // (C,)
  bool channels_last;               // of the result
};

// One view to make. Its box lies within the image.
struct ViewRequest {
  int64_t top, left, rows, columns;  // of the box
  int64_t image_height, image_width;
  bool flip;
  const float* matrix;     // (2, 3) or null
  const int64_t* steps;    // (num_steps,)
  const float* strengths;  // (num_steps,)
};

// Which pixels each pixel of a resized row comes from, and their weights.
struct ResizeTable {
  int64_t taps;
  int32_t *first, *count;  // (size,)
  float* weights;          // (size, taps)
};

// What a thread works in.
struct ViewMemory {
  float *values, *spare;  // (C, stride) the view, and as much again
  float* rows;            // (kResizeRows, columns of the largest box + kViewSlack)
  float* resized;         // (rows of the largest box + kResizeRows, width + kViewSlack)
  ResizeTable across, down;
  float* line;      // (4, side + kViewSlack), side: the larger one of the view
  int32_t* places;  // (width,)
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "views/cpu/augment_views.inl"
#include "core/cpu/foreach_capability.h"

namespace deepclust {
namespace {

// What torch's table takes at most of a side of so many pixels.
int64_t resize_taps(int64_t from, int64_t to) { return std::min(from, 2 * divide_up(from, to) + 1); }

// An image among the parts.
template <typename Pixel>
struct ImagePlace {
  const Pixel* pixels;  // (C, H, W)
  int64_t height, width;
};

template <typename Pixel>
void make_views(const std::vector<at::Tensor>& parts, const ViewRecipe& recipe, const int64_t* boxes, const bool* flips,
                const float* matrices, const int64_t* steps, const float* strengths,
                float* views  // (B, C, height, width) or, with the channels last, (B, height, width, C)
) {
  std::vector<ImagePlace<Pixel>> images;
  int64_t most_rows = 1, most_columns = 1;
  for (const at::Tensor& part : parts) {
    const int64_t height = part.size(2), width = part.size(3), size = recipe.channels * height * width;
    for (int64_t i = 0; i < part.size(0); ++i)
      images.push_back({part.const_data_ptr<Pixel>() + i * size, height, width});
    most_rows = std::max(most_rows, height);
    most_columns = std::max(most_columns, width);
  }
  const int64_t side = std::max(recipe.height, recipe.width) + kViewSlack;
  const int64_t across_taps = resize_taps(most_columns, recipe.width),
                down_taps = resize_taps(most_rows, recipe.height);
  const auto size_of = Scratch<float>::size_of;
  const int64_t floats = 2 * recipe.channels * recipe.stride + size_of(kResizeRows * (most_columns + kViewSlack)) +
                         size_of((most_rows + kResizeRows) * (recipe.width + kViewSlack)) +
                         size_of(recipe.width * across_taps) + size_of(recipe.height * down_taps) + 4 * size_of(side);
  // Views differ in what they take (a blur or none), so each thread takes the next that nobody has.
  const int64_t count = static_cast<int64_t>(images.size());
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    Scratch<float> scratch(floats);
    Scratch<int32_t> places(5 * size_of(side));
    ViewMemory memory;
    memory.values = scratch.take(recipe.channels * recipe.stride);
    memory.spare = scratch.take(recipe.channels * recipe.stride);
    memory.rows = scratch.take(kResizeRows * (most_columns + kViewSlack));
    memory.resized = scratch.take((most_rows + kResizeRows) * (recipe.width + kViewSlack));
    memory.across = {0, places.take(side), places.take(side), scratch.take(recipe.width * across_taps)};
    memory.down = {0, places.take(side), places.take(side), scratch.take(recipe.height * down_taps)};
    memory.line = scratch.take(4 * side);
    memory.places = places.take(side);
    for (int64_t i = next++; i < count; i = next++) {
      const ImagePlace<Pixel>& image = images[i];
      ViewRequest request{.top = 0,
                          .left = 0,
                          .rows = image.height,
                          .columns = image.width,
                          .image_height = image.height,
                          .image_width = image.width,
                          .flip = flips != nullptr && flips[i],
                          .matrix = matrices == nullptr ? nullptr : matrices + 6 * i,
                          .steps = steps + recipe.num_steps * i,
                          .strengths = strengths + recipe.num_steps * i};
      if (boxes != nullptr) {  // cut, whatever they are
        const int64_t* box = boxes + 4 * i;
        request.top = std::clamp<int64_t>(box[0], 0, image.height - 1);
        request.left = std::clamp<int64_t>(box[1], 0, image.width - 1);
        request.rows = std::clamp<int64_t>(box[2], 1, image.height - request.top);
        request.columns = std::clamp<int64_t>(box[3], 1, image.width - request.left);
      }
      float* view = views + i * recipe.channels * recipe.height * recipe.width;
      DEEPCLUST_SELECT(make_view<Pixel>)(recipe, request, image.pixels, memory, view);
    }
  });
}

at::Tensor contiguous_of(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}

template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

at::Tensor augment_views_cpu(at::TensorList images, at::IntArrayRef size, const std::optional<at::Tensor>& boxes,
                             const std::optional<at::Tensor>& flips, const std::optional<at::Tensor>& matrices,
                             const std::optional<at::Tensor>& steps, const std::optional<at::Tensor>& strengths,
                             int64_t blur_kernel, std::optional<at::ArrayRef<double>> mean,
                             std::optional<at::ArrayRef<double>> std, at::ScalarType dtype, bool channels_last) {
  check_augment_views(images, size, boxes, flips, matrices, steps, strengths, blur_kernel, mean, std, dtype);
  const at::ScalarType given = images[0].scalar_type();
  const bool is_integer = given == at::kByte || given == at::kUInt16;
  std::vector<at::Tensor> parts;
  int64_t count = 0;
  for (const at::Tensor& part : images) {
    parts.push_back((is_integer ? part : part.to(at::kFloat)).contiguous());
    count += part.size(0);
  }
  const int64_t channels = images[0].size(1);
  std::vector<float> means(channels, 0.0f), inverse_stds(channels, 1.0f);
  for (int64_t c = 0; mean && c < channels; ++c) {
    means[c] = static_cast<float>((*mean)[c]);
    inverse_stds[c] = static_cast<float>(1 / (*std)[c]);
  }
  const ViewRecipe recipe{.channels = channels,
                          .height = size[0],
                          .width = size[1],
                          .stride = Scratch<float>::size_of(size[0] * size[1] + kViewSlack),
                          .num_steps = steps ? steps->size(1) : 0,
                          .blur_kernel = blur_kernel,
                          .white = given == at::kByte     ? 255.0f
                                   : given == at::kUInt16 ? 65535.0f
                                                          : 1.0f,
                          .mean = means.data(),
                          .inverse_std = inverse_stds.data(),
                          .channels_last = channels_last};
  const at::Tensor views = at::empty({count, channels, size[0], size[1]}, images[0].options().dtype(at::kFloat),
                                     channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  const at::Tensor box = contiguous_of(boxes), flip = contiguous_of(flips), matrix = contiguous_of(matrices),
                   step = contiguous_of(steps), strength = contiguous_of(strengths);
  const auto run = [&](auto pixel) {
    make_views<decltype(pixel)>(parts, recipe, data_or_null<int64_t>(box), data_or_null<bool>(flip),
                                data_or_null<float>(matrix), data_or_null<int64_t>(step), data_or_null<float>(strength),
                                views.mutable_data_ptr<float>());
  };
  if (given == at::kByte) {
    run(uint8_t{});
  } else if (given == at::kUInt16) {
    run(uint16_t{});
  } else {
    run(float{});
  }
  return views.to(dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) { m.impl("augment_views", augment_views_cpu); }

}  // namespace deepclust

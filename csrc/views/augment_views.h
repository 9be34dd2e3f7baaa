// augment_views: a view of every image, from parameters that were drawn beforehand.
//
// For each image, in this order and in float32:
//   values   v / 255 of uint8, v / 65535 of uint16, floating ones as they are
//   crop     rows top to top + height - 1 and columns left to left + width - 1 of its box
//   resize   bilinear with antialias, as torch's _upsample_bilinear2d_aa; nothing where the crop has the size already
//   flip     left and right
//   move     bilinear resampling: pixel [x', y'] comes from matrix [x', y', 1], pixels from the middle, 0 from outside
//   steps    S of them, each a number of kAugmentSteps and a strength, in the image's own order
//   values   (v - mean) / std of each channel
//
// The formula of each step stands in reference/augment_views.py; saturation, hue and gray leave images without three
// channels as they are. Results are constants: no gradient reaches the images, and forward-mode tangents are an error.
// Deterministic, independent of the thread count. Offsets are 64-bit.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <c10/core/SymIntArrayRef.h>

#include <optional>

#include "views/augment_step.h"

namespace deepclust {

// (B, C, size[0], size[1]) of the dtype
at::Tensor augment_views(at::TensorList images,                       // of (n, C, H, W), whose n add up to B
                         c10::SymIntArrayRef size,                    // height and width of the views
                         const std::optional<at::Tensor>& boxes,      // (B, 4) int64: top, left, height, width
                         const std::optional<at::Tensor>& flips,      // (B,) bool
                         const std::optional<at::Tensor>& matrices,   // (B, 2, 3) float32
                         const std::optional<at::Tensor>& steps,      // (B, S) int64
                         const std::optional<at::Tensor>& strengths,  // (B, S) float32
                         c10::SymInt blur_kernel,                     // odd
                         std::optional<at::ArrayRef<double>> mean,    // C numbers
                         std::optional<at::ArrayRef<double>> std,     // C positive numbers
                         at::ScalarType dtype,                        // floating, not float64
                         bool channels_last);

void check_augment_views(at::TensorList images, at::IntArrayRef size, const std::optional<at::Tensor>& boxes,
                         const std::optional<at::Tensor>& flips, const std::optional<at::Tensor>& matrices,
                         const std::optional<at::Tensor>& steps, const std::optional<at::Tensor>& strengths,
                         int64_t blur_kernel, std::optional<at::ArrayRef<double>> mean,
                         std::optional<at::ArrayRef<double>> std, at::ScalarType dtype);

}  // namespace deepclust

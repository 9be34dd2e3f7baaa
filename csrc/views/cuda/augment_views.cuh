// augment_views on CUDA: what its kernel reads and writes. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"
#include "views/augment_step.h"

namespace deepclust {

enum class PixelType { kU8, kU16, kF16, kBf16, kF32, kF64 };  // of the images

// One image (C, height, width).
struct AugmentImage {
  const void* pixels;
  int64_t strides[3];  // in elements: from a channel to the next, a row, a column
  int64_t height, width;
};

struct AugmentInputs {
  PixelType type;
  int64_t count, channels;     // B, C
  int64_t height, width;       // of the views
  AugmentImage first;          // the first image, where all are those of one tensor,
  int64_t image_stride;        // and elements from each to the next
  const AugmentImage* images;  // (B,) where they are not; else null
  const int64_t* boxes;        // (B, 4) top, left, height, width, which are cut to the image; or null
  const bool* flips;           // (B,) or null
  const float* matrices;       // (B, 2, 3) or null
  const int64_t* steps;        // (B, S) of which unknown ones do nothing; or null
  const float* strengths;      // (B, S) or null
  int64_t num_steps;           // S
  int64_t blur_kernel;         // odd
  bool normalize;              // by the next two
  float mean[kMaxAugmentChannels];
  float std[kMaxAugmentChannels];
};

struct AugmentViews {
  ElementType type;  // not kF64
  void* data;
  int64_t strides[4];  // in elements, of (B, C, height, width)
};

// How the work is cut, decided from the sizes and the device.
struct AugmentPlan {
  int64_t blocks;   // thread blocks, each of which makes one view after the other
  int64_t weights;  // of half a Gaussian, with its middle
};

AugmentPlan plan_augment_views(const AugmentInputs& inputs, int multiprocessors);

// Device memory that the blocks need and nobody reads afterwards, float32; none without matrices and steps.
enum AugmentField {
  kAugmentFront,    // (blocks, C, height, width)
  kAugmentBack,     // (blocks, C, height, width)
  kAugmentWeights,  // (blocks, weights)
  kAugmentFields
};

struct AugmentBytes {
  int64_t field[kAugmentFields];
};
AugmentBytes augment_views_bytes(const AugmentInputs& inputs, const AugmentPlan& plan);

struct AugmentWorkspace {
  void* field[kAugmentFields];
};

// One launch. Refuses more than 2^30 rows or columns.
cudaError_t launch_augment_views(const AugmentInputs& inputs, const AugmentPlan& plan,
                                 const AugmentWorkspace& workspace, const AugmentViews& views, cudaStream_t stream);

}  // namespace deepclust

// What a thread block of augment_views does next: one thread plans each pass for all.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "views/augment_step.h"
#include "views/cuda/augment_gathers.cuh"
#include "views/cuda/augment_points.cuh"
#include "views/cuda/augment_views.cuh"

namespace deepclust {

constexpr int kMostSteps = 32;  // of a pass

enum class Gather { kImage, kSamePlace, kBlurColumns, kBlurRows, kSharpness, kMoveBilinear, kMoveNearest };
enum class Measure { kNothing, kMean, kRange, kLevels };

struct AugmentArguments {
  AugmentInputs in;
  AugmentViews out;
  float* front;
  float* back;
  float* weights;
  int64_t num_weights;  // of a block
};

// What the block does next, planned by one thread.
struct Pass {
  const float* source;  // (C, height, width) the view so far
  float* target;        // (C, height, width) where the pass writes it, unless it is the last
  float* spare;         // (C, height, width)
  int64_t next;         // the first step after those of the pass
  Gather gather;
  Measure measure;
  int num_steps;    // that follow the gather
  int gather_step;  // which step the gather is,
  float strength;   // and its strength
  int last;         // whether the pass writes the result
};

// Shared memory of a thread block.
struct Scratch {
  Pass* pass;          // (1,)
  Crop* crop;          // (1,)
  Move* move;          // (1,)
  Gaussian* gaussian;  // (1,)
  PointStep* steps;    // (kMostSteps,)
  int* counts;         // (channels of a pixel, kLevels)
  Measured measured;
};

__device__ __forceinline__ Measure measure_of(int64_t step) {
  switch (static_cast<AugmentStep>(step)) {
    case AugmentStep::kContrast:
      return Measure::kMean;
    case AugmentStep::kAutocontrast:
      return Measure::kRange;
    case AugmentStep::kEqualize:
      return Measure::kLevels;
    default:
      return Measure::kNothing;
  }
}

// kSamePlace: the step is no gather.
__device__ __forceinline__ Gather gather_of(int64_t step, int64_t height, int64_t width) {
  switch (static_cast<AugmentStep>(step)) {
    case AugmentStep::kBlur:
      return Gather::kBlurColumns;
    case AugmentStep::kSharpness:
      return height > 2 && width > 2 ? Gather::kSharpness : Gather::kSamePlace;
    case AugmentStep::kRotate:
    case AugmentStep::kShearX:
    case AugmentStep::kShearY:
    case AugmentStep::kShiftX:
    case AugmentStep::kShiftY:
      return Gather::kMoveNearest;
    default:
      return Gather::kSamePlace;
  }
}

__device__ inline PointStep point_of(int64_t step, float strength) {
  if (step < 0 || step >= kAugmentSteps) return {0, 0.0f};
  if (static_cast<AugmentStep>(step) == AugmentStep::kPosterize) {
    strength = static_cast<float>(exp2(static_cast<double>(strength)));
  }
  return {static_cast<int>(step), strength};
}

// What of [first, first + length) lies in [0, side), at least one place.
struct Cut {
  int64_t begin, end;

  __device__ __forceinline__ Cut(int64_t first, int64_t length, int64_t side) {
    constexpr int64_t kFar = int64_t{1} << 60;  // twice as much is no overflow yet
    first = max(min(first, kFar), -kFar);
    begin = max(min(first, side - 1), int64_t{0});
    end = max(min(first + max(min(length, kFar), int64_t{0}), side), begin + 1);
  }
};

__device__ inline Crop crop_of(const AugmentInputs& in, int64_t index) {
  const AugmentImage image = in.images != nullptr ? in.images[index] : in.first;
  int64_t box[4] = {0, 0, image.height, image.width};
  for (int i = 0; i < 4 && in.boxes != nullptr; ++i) box[i] = in.boxes[4 * index + i];
  const Cut rows(box[0], box[2], image.height), columns(box[1], box[3], image.width);
  const int64_t first = (in.images != nullptr ? 0 : index * in.image_stride) + rows.begin * image.strides[1] +
                        columns.begin * image.strides[2];
  constexpr int kBytes[] = {1, 2, 2, 2, 4, 8};  // of PixelType
  Crop crop;
  crop.pixels = static_cast<const char*>(image.pixels) + first * kBytes[static_cast<int>(in.type)];
  for (int i = 0; i < 3; ++i) crop.strides[i] = image.strides[i];
  crop.height = static_cast<int>(rows.end - rows.begin);
  crop.width = static_cast<int>(columns.end - columns.begin);
  crop.white = in.type == PixelType::kU8 ? 255.0f : in.type == PixelType::kU16 ? 65535.0f : 1.0f;
  crop.flip = in.flips != nullptr && in.flips[index] ? 1 : 0;
  return crop;
}

__device__ inline Move move_of(const AugmentInputs& in, int64_t index, const Pass& pass) {
  double matrix[6] = {1, 0, 0, 0, 1, 0};
  const double strength = pass.strength;
  switch (static_cast<AugmentStep>(pass.gather == Gather::kMoveBilinear ? 0 : pass.gather_step)) {
    case AugmentStep::kRotate: {
      const double angle = strength * (3.14159265358979323846 / 180);
      matrix[0] = matrix[4] = cos(angle);
      matrix[3] = sin(angle);
      matrix[1] = -matrix[3];
      break;
    }
    case AugmentStep::kShearX:
      matrix[1] = strength;
      matrix[2] = strength * static_cast<double>(in.height) / 2;
      break;
    case AugmentStep::kShearY:
      matrix[3] = strength;
      matrix[5] = strength * static_cast<double>(in.width) / 2;
      break;
    case AugmentStep::kShiftX:
      matrix[2] = -strength;
      break;
    case AugmentStep::kShiftY:
      matrix[5] = -strength;
      break;
    default:
      for (int i = 0; i < 6; ++i) matrix[i] = in.matrices[6 * index + i];
  }
  Move move;
  for (int i = 0; i < 6; ++i) move.matrix[i] = static_cast<float>(matrix[i]);
  move.to_grid[0] = static_cast<float>(2.0 / static_cast<double>(in.width));
  move.to_grid[1] = static_cast<float>(2.0 / static_cast<double>(in.height));
  return move;
}

// By one thread: plans the first pass of a view, or the one after the pass that is planned now.
__device__ inline void plan_pass(const AugmentArguments& arguments, int64_t index, bool first, const Scratch& scratch) {
  const AugmentInputs& in = arguments.in;
  const int64_t* steps = in.steps + index * in.num_steps;
  const float* strengths = in.strengths + index * in.num_steps;
  Pass& pass = *scratch.pass;
  const bool measured = !first && pass.measure != Measure::kNothing;
  // Step 1: where the pass takes its pixels from, and where it puts them. Only moves and blurs need another place.
  if (first) {
    const int64_t view = in.channels * in.height * in.width;
    pass = {};
    pass.source = pass.target = arguments.front + blockIdx.x * view;
    pass.spare = arguments.back + blockIdx.x * view;
    *scratch.crop = crop_of(in, index);
  } else {
    if (pass.target != pass.source) pass.spare = const_cast<float*>(pass.source);
    pass.source = pass.target;
    if (pass.gather == Gather::kImage && in.matrices != nullptr) {
      pass.gather = Gather::kMoveBilinear;
    } else if (pass.gather == Gather::kBlurColumns) {
      pass.gather = Gather::kBlurRows;
    } else {
      pass.gather = gather_of(steps[pass.next], in.height, in.width);
      if (pass.gather != Gather::kSamePlace) {
        pass.gather_step = static_cast<int>(steps[pass.next]);
        pass.strength = strengths[pass.next];
        ++pass.next;
      }
    }
    if (pass.gather != Gather::kSamePlace) pass.target = pass.spare;
  }
  if (pass.gather == Gather::kMoveBilinear || pass.gather == Gather::kMoveNearest) {
    *scratch.move = move_of(in, index, pass);
  }
  // Step 2: the steps on single pixels that it makes. One that needs a measurement begins a pass or waits for the next
  // one.
  pass.measure = Measure::kNothing;
  pass.num_steps = pass.last = 0;
  if ((pass.gather == Gather::kImage && in.matrices != nullptr) || pass.gather == Gather::kBlurColumns) return;
  for (bool ready = measured; pass.next < in.num_steps && pass.num_steps < kMostSteps; ready = false) {
    const int64_t step = steps[pass.next];
    const bool alone = measure_of(step) == Measure::kNothing;
    if ((!alone && !ready) || gather_of(step, in.height, in.width) != Gather::kSamePlace) break;
    scratch.steps[pass.num_steps++] = point_of(step, strengths[pass.next++]);
  }
  pass.last = pass.next == in.num_steps;
  if (!pass.last) pass.measure = measure_of(steps[pass.next]);
}

}  // namespace deepclust

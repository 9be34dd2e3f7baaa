// The steps of augment_views that a pixel takes alone, given what was measured of its image. A pixel is three colors,
// or one channel of any other image. NaN stays NaN.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "views/augment_step.h"

namespace deepclust {

// A step ready for every pixel. The strength of posterize is the number of levels here.
struct PointStep {
  int number;
  float strength;
};

// What contrast, autocontrast and equalize have to know of the image; all in shared memory.
struct Measured {
  float* mean;     // (1,) of the gray values
  float* low;      // (C,) the smallest value of each channel
  float* high;     // (C,)
  uint8_t* table;  // (C, 256) what becomes of each level
};

constexpr int kLevels = 256;

__device__ __forceinline__ float clamp_to_one(float v) { return v < 0 ? 0.0f : v > 1 ? 1.0f : v; }

// The larger and the smaller, NaN if one is.
__device__ __forceinline__ float larger_or_nan(float x, float y) { return x > y || x != x ? x : y; }
__device__ __forceinline__ float smaller_or_nan(float x, float y) { return x < y || x != x ? x : y; }

__device__ __forceinline__ float blend(float v, float other, float share) {
  return clamp_to_one(v * share + other * (1 - share));
}

__device__ __forceinline__ int level_of(float v) {
  return static_cast<int>(fminf(fmaxf(v * 255.999f, 0.0f), 255.0f));  // NaN too becomes a level
}

__device__ __forceinline__ float gray_of(const float (&v)[1]) { return v[0]; }
__device__ __forceinline__ float gray_of(const float (&v)[3]) { return 0.2989f * v[0] + 0.587f * v[1] + 0.114f * v[2]; }

// Turns the hue of HSV by a share of the circle.
__device__ __forceinline__ void turn_hue(float (&v)[3], float shift) {
  const float largest = larger_or_nan(larger_or_nan(v[0], v[1]), v[2]);
  const float smallest = smaller_or_nan(smaller_or_nan(v[0], v[1]), v[2]);
  const bool gray = largest == smallest;
  const float chroma = largest - smallest, divisor = gray ? 1.0f : chroma;
  const float saturation = chroma / (gray ? 1.0f : largest);
  const float red = (largest - v[0]) / divisor, green = (largest - v[1]) / divisor, blue = (largest - v[2]) / divisor;
  const float sector = largest == v[0] ? blue - green : largest == v[1] ? 2 + red - blue : 4 + green - red;
  const float turned = sector / 6 + 1 + shift, hue = (turned - floorf(turned)) * 6;
  const float sixth = floorf(hue), rest = hue - sixth;
  const float low = clamp_to_one(largest * (1 - saturation));
  const float falling = clamp_to_one(largest * (1 - saturation * rest));
  const float rising = clamp_to_one(largest * (1 - saturation * (1 - rest)));
  const int side = static_cast<int>(fminf(fmaxf(sixth, 0.0f), 6.0f)) % 6;  // NaN too becomes a side
  v[0] = side == 0 || side == 5 ? largest : side == 1 ? falling : side == 4 ? rising : low;
  v[1] = side == 1 || side == 2 ? largest : side == 3 ? falling : side == 0 ? rising : low;
  v[2] = side == 3 || side == 4 ? largest : side == 5 ? falling : side == 2 ? rising : low;
}

// `channel`: the pixel's first.
template <int kChannels>
__device__ __forceinline__ void apply_point(const PointStep step, const Measured& measured, int64_t channel,
                                            float (&v)[kChannels]) {
  const float strength = step.strength;
  const auto change = [&](auto&& formula) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) v[c] = formula(v[c], channel + c);
  };
  switch (static_cast<AugmentStep>(step.number)) {
    case AugmentStep::kBrightness:
      return change([&](float x, int64_t) { return clamp_to_one(x * strength); });
    case AugmentStep::kContrast: {
      const float mean = *measured.mean;
      return change([&](float x, int64_t) { return blend(x, mean, strength); });
    }
    case AugmentStep::kSolarize:
      return change([&](float x, int64_t) { return x >= strength ? 1 - x : x; });
    case AugmentStep::kPosterize: {
      const float top = strength - 1;
      return change([&](float x, int64_t) {
        const float level = floorf(x * strength);
        return (level < 0 ? 0.0f : level > top ? top : level) / strength;
      });
    }
    case AugmentStep::kAutocontrast:
      return change([&](float x, int64_t c) {
        const float low = measured.low[c], high = measured.high[c];
        return clamp_to_one(low == high ? x : (x - low) / (high - low));
      });
    case AugmentStep::kEqualize:
      return change([&](float x, int64_t c) { return measured.table[c * kLevels + level_of(x)] / 255.0f; });
    case AugmentStep::kGamma:
#pragma unroll 1  // powf takes many registers, so the channels take turns in one place
      for (int turn = 0; turn < kChannels; ++turn) {
        const float power = powf(v[0], strength);
#pragma unroll
        for (int c = 1; c < kChannels; ++c) v[c - 1] = v[c];
        v[kChannels - 1] = power;
      }
      return;
    default:
      break;
  }
  if constexpr (kChannels == 3) {
    switch (static_cast<AugmentStep>(step.number)) {
      case AugmentStep::kSaturation: {
        const float gray = gray_of(v);
        return change([&](float x, int64_t) { return blend(x, gray, strength); });
      }
      case AugmentStep::kHue:
        return turn_hue(v, strength);
      case AugmentStep::kGray: {
        const float gray = gray_of(v);
        return change([&](float, int64_t) { return gray; });
      }
      default:
        break;
    }
  }
}

}  // namespace deepclust

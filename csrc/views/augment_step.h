// What the code of augment_views for every device agrees on.
#pragma once

#include <cstdint>

namespace deepclust {

// The numbers of the steps, in the order of reference.augment_views.STEPS.
enum class AugmentStep : int64_t {
  kNone,
  kBrightness,
  kContrast,
  kSaturation,
  kHue,
  kGray,
  kBlur,
  kSolarize,
  kPosterize,
  kAutocontrast,
  kEqualize,
  kSharpness,
  kRotate,
  kShearX,
  kShearY,
  kShiftX,
  kShiftY,
  kGamma,
};
constexpr int64_t kAugmentSteps = 18;
constexpr int64_t kMaxAugmentChannels = 64;

}  // namespace deepclust

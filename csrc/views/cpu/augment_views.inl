// A view from beginning to end; see augment_views.cpp. No include guard: compiled once per capability.

#include "views/cpu/view_points.inl"
#include "views/cpu/view_resize.inl"
// After the points, whose arithmetic they use.
#include "views/cpu/view_areas.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Does a step that needs other pixels; false if it is none.
inline bool apply_area(const ViewRecipe& recipe, AugmentStep step, float strength, ViewMemory& memory) {
  switch (step) {
    case AugmentStep::kBlur:
      blur(recipe, strength, memory);
      return true;
    case AugmentStep::kEqualize:
      equalize(recipe, memory);
      return true;
    case AugmentStep::kSharpness:
      sharpen(recipe, strength, memory);
      return true;
    case AugmentStep::kRotate:
    case AugmentStep::kShearX:
    case AugmentStep::kShearY:
    case AugmentStep::kShiftX:
    case AugmentStep::kShiftY: {
      float matrix[6];
      fill_move(recipe, step, strength, matrix);
      move_pixels(recipe, matrix, true, memory);
      return true;
    }
    default:
      return false;
  }
}

// What it takes to begin a pass with this step.
inline bool needs_facts(AugmentStep step) {
  return step == AugmentStep::kContrast || step == AugmentStep::kAutocontrast;
}

inline bool is_area(AugmentStep step) {
  return step == AugmentStep::kBlur || step == AugmentStep::kEqualize ||
         (step >= AugmentStep::kSharpness && step <= AugmentStep::kShiftY);
}

// The strip's values of some channels, each pixel's after the other's.
template <int64_t kChannels>
DEEPCLUST_INLINE void write_interleaved(const ViewRecipe& recipe, const float* values, int64_t channel, int64_t count,
                                        float* view /* (count, C) */) {
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 3
    for (int64_t c = 0; c < kChannels; ++c) {
      view[i * recipe.channels + channel + c] =
          (values[(channel + c) * recipe.stride + i] - recipe.mean[channel + c]) * recipe.inverse_std[channel + c];
    }
  }
}

// Normalizes the strip from pixel `first` on into the result.
inline void write_strip(const ViewRecipe& recipe, const float* values, int64_t first, int64_t count, float* view) {
  constexpr int64_t kLanes = VecOf<float>::kLanes;
  if (recipe.channels_last) {
    view += first * recipe.channels;
    if (recipe.channels == 3) return write_interleaved<3>(recipe, values, 0, count, view);
    for (int64_t c = 0; c < recipe.channels; ++c) write_interleaved<1>(recipe, values, c, count, view);
    return;
  }
  view += first;
  for (int64_t c = 0; c < recipe.channels; ++c, values += recipe.stride, view += recipe.height * recipe.width) {
    const float mean = recipe.mean[c], inverse_std = recipe.inverse_std[c];
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(view + i, (load(values + i) - mean) * inverse_std);
    for (; i < count; ++i) view[i] = (values[i] - mean) * inverse_std;
  }
}

template <typename Pixel>
void make_view(const ViewRecipe& recipe, const ViewRequest& request, const Pixel* image /* (C, H, W) */,
               ViewMemory& memory, float* view /* (C, height, width) or (height, width, C) */) {
  load_view(recipe, request, image, memory);
  if (request.matrix != nullptr) move_pixels(recipe, request.matrix, false, memory);
  const int64_t pixels = recipe.height * recipe.width;
  float lowest[kMaxAugmentChannels], highest[kMaxAugmentChannels];
  ViewFacts facts{0, lowest, highest};
  const auto step_of = [&](int64_t s) { return static_cast<AugmentStep>(request.steps[s]); };
  int64_t s = 0;
  do {
    while (s < recipe.num_steps && apply_area(recipe, step_of(s), request.strengths[s], memory)) ++s;
    const int64_t first = s;
    if (s < recipe.num_steps) {
      if (step_of(s) == AugmentStep::kContrast) facts.mean = gray_mean(recipe, memory.values);
      if (step_of(s) == AugmentStep::kAutocontrast) find_extremes(recipe, memory.values, facts);
      ++s;
    }
    while (s < recipe.num_steps && !needs_facts(step_of(s)) && !is_area(step_of(s))) ++s;
    for (int64_t i = 0; i < pixels; i += kStripPixels) {
      const int64_t left = pixels - i, count = left < kStripPixels ? left : kStripPixels;
      for (int64_t k = first; k < s; ++k) {
        apply_point(recipe, step_of(k), request.strengths[k], facts, memory.values + i, count);
      }
      if (s == recipe.num_steps) write_strip(recipe, memory.values + i, i, count, view);
    }
  } while (s < recipe.num_steps);
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

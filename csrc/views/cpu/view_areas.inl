// Steps of augment_views for which a pixel needs others. No include guard: compiled once per capability.
//
// Vectors run over the end of rows: what they write there is written again with the next row, or is slack.

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

inline void exchange_planes(ViewMemory& memory) {
  float* values = memory.values;
  memory.values = memory.spare;
  memory.spare = values;
}

// Where a mirrored border's pixel lies; `i` is beyond the border by less than the side.
DEEPCLUST_INLINE int64_t mirrored(int64_t i, int64_t side) { return i < 0 ? -i : (i < side ? i : 2 * (side - 1) - i); }

// Weights of a Gaussian from the middle on; returns how far they reach.
inline int64_t fill_blur(float sigma, int64_t kernel, int64_t side, float* weights /* (side,) */) {
  int64_t radius = kernel / 2 < side - 1 ? kernel / 2 : side - 1;
  double total = 0;
  const auto weight_of = [&](int64_t k) {
    return sigma > 0 ? std::exp(-0.5 * (k / static_cast<double>(sigma)) * (k / static_cast<double>(sigma)))
                     : static_cast<double>(k == 0);
  };
  for (int64_t k = -radius; k <= radius; ++k) total += weight_of(k);
  for (int64_t k = 0; k <= radius; ++k) weights[k] = static_cast<float>(weight_of(k) / total);
  while (radius > 0 && weights[radius] < kNegligible * weights[0]) --radius;
  return radius;
}

// Writes a convolved row: `at(k, x)` gives what lies k pixels before or behind those of a vector, both sides added.
template <int64_t kVectors, typename Middle, typename Both>
DEEPCLUST_INLINE void blur_vectors(const float* weights, int64_t radius, int64_t x, float* to, const Middle& middle,
                                   const Both& both) {
  constexpr int64_t kLanes = VecOf<float>::kLanes;
  Vec<float> sum[kVectors];
#pragma GCC unroll 4
  for (int64_t v = 0; v < kVectors; ++v) sum[v] = middle(x + v * kLanes) * weights[0];
  for (int64_t k = 1; k <= radius; ++k) {
    const Vec<float> weight = broadcast(weights[k]);
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) sum[v] += both(k, x + v * kLanes) * weight;
  }
#pragma GCC unroll 4
  for (int64_t v = 0; v < kVectors; ++v) store(to + x + v * kLanes, sum[v]);
}

template <typename Middle, typename Both>
DEEPCLUST_INLINE void blur_row(const float* weights, int64_t radius, int64_t width, float* to, const Middle& middle,
                               const Both& both) {
  constexpr int64_t kLanes = VecOf<float>::kLanes, kVectors = 4;
  int64_t x = 0;
  for (; x + kVectors * kLanes <= width; x += kVectors * kLanes) {
    blur_vectors<kVectors>(weights, radius, x, to, middle, both);
  }
  for (; x < width; x += kLanes) blur_vectors<1>(weights, radius, x, to, middle, both);
}

inline void blur(const ViewRecipe& recipe, float sigma, ViewMemory& memory) {
  const int64_t height = recipe.height, width = recipe.width;
  float *weights = memory.line, *padded = memory.line + (height > width ? height : width) + kViewSlack;
  const auto row_radius = fill_blur(sigma, recipe.blur_kernel, width, weights);
  for (int64_t c = 0; c < recipe.channels; ++c) {
    for (int64_t y = 0; y < height; ++y) {
      const float* row = memory.values + c * recipe.stride + y * width;
      for (int64_t x = 0; x < width; ++x) padded[row_radius + x] = row[x];
      for (int64_t k = 1; k <= row_radius; ++k) {
        padded[row_radius - k] = row[k];
        padded[row_radius + width - 1 + k] = row[width - 1 - k];
      }
      const float* from = padded + row_radius;
      blur_row(
          weights, row_radius, width, memory.spare + c * recipe.stride + y * width,
          [&](int64_t x) __attribute__((always_inline)) { return load(from + x); },
          [&](int64_t k, int64_t x) __attribute__((always_inline)) { return load(from + x - k) + load(from + x + k); });
    }
  }
  const auto radius = fill_blur(sigma, recipe.blur_kernel, height, weights);
  for (int64_t c = 0; c < recipe.channels; ++c) {
    const float* rows = memory.spare + c * recipe.stride;
    for (int64_t y = 0; y < height; ++y) {
      blur_row(
          weights, radius, width, memory.values + c * recipe.stride + y * width,
          [&](int64_t x) __attribute__((always_inline)) { return load(rows + y * width + x); },
          [&](int64_t k, int64_t x) __attribute__((always_inline)) {
            return load(rows + mirrored(y - k, height) * width + x) + load(rows + mirrored(y + k, height) * width + x);
          });
    }
  }
}

// Blends with the mean of 3 x 3 pixels, the one in the middle five times; into `spare`, which becomes the view.
inline void sharpen(const ViewRecipe& recipe, float share, ViewMemory& memory) {
  const int64_t height = recipe.height, width = recipe.width;
  if (height <= 2 || width <= 2) return;
  const float other = static_cast<float>(1 - static_cast<double>(share));
  for (int64_t c = 0; c < recipe.channels; ++c) {
    const float* from = memory.values + c * recipe.stride;
    float* to = memory.spare + c * recipe.stride;
    const auto keep = [&](int64_t begin, int64_t end, int64_t step) {
      for (int64_t i = begin; i < end; i += step) {
        const float value = from[i] * share + from[i] * other;
        to[i] = value < 0 ? 0 : (value > 1 ? 1 : value);
      }
    };
    for (int64_t i = width + 1; i < (height - 1) * width - 1; i += VecOf<float>::kLanes) {
      Vec<float> sum = 5.0f * load(from + i);
#pragma GCC unroll 3
      for (int64_t y = -1; y <= 1; ++y) {
        sum += load(from + i + y * width - 1) + load(from + i + y * width + 1);
        if (y != 0) sum += load(from + i + y * width);
      }
      store(to + i, clamp_unit(load(from + i) * share + sum * (1.0f / 13) * other));
    }
    keep(0, width, 1);
    keep((height - 1) * width, height * width, 1);
    keep(0, height * width, width);
    keep(width - 1, height * width, width);
  }
  exchange_planes(memory);
}

// Spreads the histogram of every channel.
inline void equalize(const ViewRecipe& recipe, ViewMemory& memory) {
  constexpr int64_t kLevels = 256, kTables = 4;
  const int64_t pixels = recipe.height * recipe.width;
  for (int64_t c = 0; c < recipe.channels; ++c) {
    float *values = memory.values + c * recipe.stride, *levels = memory.spare + c * recipe.stride;
    for (int64_t i = 0; i < pixels; i += VecOf<float>::kLanes) {
      const Vec<float> level = load(values + i) * 255.999f;
      const Vec<float> above = level > 0.0f ? level : Vec<float>{};  // NaN too becomes 0
      store(levels + i, floor_of(above > 255.0f ? broadcast(255.0f) : above));
    }
    int32_t counts[kTables][kLevels] = {};  // several, since one is slow where neighbors are equal
    for (int64_t i = 0; i < pixels; ++i) ++counts[i % kTables][static_cast<int32_t>(levels[i])];
    int64_t last = 0;
    for (int64_t level = 0; level < kLevels; ++level) {
      for (int64_t t = 1; t < kTables; ++t) counts[0][level] += counts[t][level];
      if (counts[0][level] > 0) last = counts[0][level];
    }
    const int64_t step = (pixels - last) / (kLevels - 1);
    float table[kLevels];
    int64_t before = 0;
    for (int64_t level = 0; level < kLevels; ++level) {
      const int64_t spread = step > 0 ? (before + step / 2) / step : level;
      table[level] = static_cast<float>(spread < kLevels ? spread : kLevels - 1) / 255.0f;
      before += counts[0][level];
    }
    for (int64_t i = 0; i < pixels; ++i) values[i] = table[static_cast<int32_t>(levels[i])];
  }
}

// Where the pixels of a row come from along a side, which `from` receives: ((across + down + shift) * 2 / side + 1) *
// side / 2 - 1 / 2, each operation rounded as torch's grid_sample rounds it. A compiler that joins a product and a sum
// into one rounding takes other pixels where a place lies halfway between two: each loop ends in memory, which none
// joins.
inline void find_sources(const float* across, float down, float shift, int64_t side, int64_t count, float* from) {
  const float scale = static_cast<float>(2 / static_cast<double>(side)), half = static_cast<float>(side) / 2;
  for (int64_t x = 0; x < count; ++x) from[x] = (across[x] + down + shift) * scale;
  for (int64_t x = 0; x < count; ++x) from[x] = (from[x] + 1.0f) * half;
  for (int64_t x = 0; x < count; ++x) {
    const float place = from[x] - 0.5f, above = place > -2.0f ? place : -2.0f;
    from[x] = above < static_cast<float>(side + 1) ? above : static_cast<float>(side + 1);
  }
}

// Takes every pixel from where the matrix says, into `spare`, which becomes the view.
inline void move_pixels(const ViewRecipe& recipe, const float* matrix /* (2, 3) */, bool is_nearest,
                        ViewMemory& memory) {
  const int64_t height = recipe.height, width = recipe.width, stride = recipe.stride;
  const int64_t line = (height > width ? height : width) + kViewSlack, outside = height * width;
  float *across_x = memory.line, *across_y = across_x + line, *from_x = across_y + line, *from_y = from_x + line;
  for (int64_t c = 0; c < recipe.channels; ++c) memory.values[c * stride + outside] = 0;
  for (int64_t x = 0; x < width; ++x) {
    const float place = static_cast<float>(x) - static_cast<float>(width - 1) / 2;
    across_x[x] = matrix[0] * place;
    across_y[x] = matrix[3] * place;
  }
  const auto place_of = [&](int64_t x, int64_t y) {
    return x >= 0 && x < width && y >= 0 && y < height ? y * width + x : outside;
  };
  for (int64_t y = 0; y < height; ++y) {
    const float place = static_cast<float>(y) - static_cast<float>(height - 1) / 2;
    volatile float down_x = matrix[1] * place, down_y = matrix[4] * place;  // rounded before they are added
    find_sources(across_x, down_x, matrix[2], width, width, from_x);
    find_sources(across_y, down_y, matrix[5], height, width, from_y);
    float* to = memory.spare + y * width;
    // Each pixel of the line is the nearest one of its source.
    if (is_nearest) {
      constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer, of two the even one
      for (int64_t x = 0; x < width; ++x) {
        const float near_x = (from_x[x] + kRound) - kRound, near_y = (from_y[x] + kRound) - kRound;
        memory.places[x] = static_cast<int32_t>(place_of(static_cast<int32_t>(near_x), static_cast<int32_t>(near_y)));
      }
      for (int64_t c = 0; c < recipe.channels; ++c) {
        for (int64_t x = 0; x < width; ++x) to[c * stride + x] = memory.values[c * stride + memory.places[x]];
      }
      continue;
    }
    // Or it is a mean of the four around it, by how near they are.
    for (int64_t x = 0; x < width; ++x) {
      const float left = std::floor(from_x[x]), top = std::floor(from_y[x]);
      const int64_t column = static_cast<int64_t>(left), row = static_cast<int64_t>(top);
      const float right_share = from_x[x] - left, left_share = 1 - right_share;
      const float lower_share = from_y[x] - top, upper_share = 1 - lower_share;
      const int64_t upper_left = place_of(column, row), upper_right = place_of(column + 1, row);
      const int64_t lower_left = place_of(column, row + 1), lower_right = place_of(column + 1, row + 1);
      for (int64_t c = 0; c < recipe.channels; ++c) {
        const float* from = memory.values + c * stride;
        to[c * stride + x] =
            from[upper_left] * (upper_share * left_share) + from[upper_right] * (upper_share * right_share) +
            from[lower_left] * (lower_share * left_share) + from[lower_right] * (lower_share * right_share);
      }
    }
  }
  exchange_planes(memory);
}

// The matrix of a step that moves pixels.
inline void fill_move(const ViewRecipe& recipe, AugmentStep step, float strength, float* matrix /* (2, 3) */) {
  const double angle = static_cast<double>(strength) * (kPi / 180);
  const bool is_rotation = step == AugmentStep::kRotate;
  const float cosine = is_rotation ? static_cast<float>(std::cos(angle)) : 1;
  const float sine = is_rotation ? static_cast<float>(std::sin(angle)) : 0;
  const float shear_x = step == AugmentStep::kShearX ? strength : 0,
              shear_y = step == AugmentStep::kShearY ? strength : 0;
  matrix[0] = cosine;
  matrix[1] = is_rotation ? -sine : shear_x;
  matrix[2] = step == AugmentStep::kShiftX ? -strength : shear_x * static_cast<float>(recipe.height) / 2;
  matrix[3] = is_rotation ? sine : shear_y;
  matrix[4] = cosine;
  matrix[5] = step == AugmentStep::kShiftY ? -strength : shear_y * static_cast<float>(recipe.width) / 2;
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

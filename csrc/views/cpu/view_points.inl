// Steps of augment_views that change each pixel alone. No include guard: compiled once per capability.

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// To [0, 1]; NaN stays NaN.
DEEPCLUST_INLINE Vec<float> clamp_unit(const Vec<float>& x) {
  const Vec<float> above = x < 0.0f ? Vec<float>{} : x;
  return above > 1.0f ? broadcast(1.0f) : above;
}

DEEPCLUST_INLINE Vec<float> largest_of(const Vec<float>& a, const Vec<float>& b) { return a > b ? a : b; }
DEEPCLUST_INLINE Vec<float> smallest_of(const Vec<float>& a, const Vec<float>& b) { return a < b ? a : b; }

// The largest integer up to x, which is at least 0 or NaN. From 2^23 on, all are integers; they are not converted.
DEEPCLUST_INLINE Vec<float> floor_of(const Vec<float>& x) {
  const Mask<float> fits = x < 0x1p23f;
  const Vec<float> safe = fits ? x : Vec<float>{};
  return fits ? __builtin_convertvector(__builtin_convertvector(safe, Mask<float>), Vec<float>) : x;
}

DEEPCLUST_INLINE Vec<float> gray_of(const Vec<float>& red, const Vec<float>& green, const Vec<float>& blue) {
  return 0.2989f * red + 0.587f * green + 0.114f * blue;
}

// Calls change() for all vectors of a strip and stores what it returns. The last vector may run over its end.
template <typename Change>
DEEPCLUST_INLINE void change_values(float* values, int64_t count, const Change& change) {
  for (int64_t i = 0; i < count; i += VecOf<float>::kLanes) store(values + i, change(load(values + i)));
}

// The same for red, green and blue, which it changes in place.
template <typename Change>
DEEPCLUST_INLINE void change_colors(float* values, int64_t stride, int64_t count, const Change& change) {
  for (int64_t i = 0; i < count; i += VecOf<float>::kLanes) {
    Vec<float> red = load(values + i), green = load(values + stride + i), blue = load(values + 2 * stride + i);
    change(red, green, blue);
    store(values + i, red);
    store(values + stride + i, green);
    store(values + 2 * stride + i, blue);
  }
}

// A channel of the color whose hue is `sixths` of the circle / 6 from red, by the distance from where the channel falls
// and rises; `offset` is 5 for red, 3 for green, 1 for blue.
DEEPCLUST_INLINE Vec<float> channel_of(const Vec<float>& sixths, float offset, const Vec<float>& largest,
                                       const Vec<float>& chroma) {
  const Vec<float> turned = sixths + offset;
  const Vec<float> place = turned >= 6.0f ? turned - 6.0f : turned;
  const Vec<float> share = clamp_unit(smallest_of(place, 4.0f - place));
  return share == 0.0f ? largest : clamp_unit(largest - chroma * share);
}

// Turns the hue of the hexcone model by a share of the circle.
inline void turn_hue(float* values, int64_t stride, int64_t count, float shift) {
  const float turn = 6 * (shift - std::floor(shift));
  change_colors(values, stride, count,
                [&](Vec<float>& red, Vec<float>& green, Vec<float>& blue) __attribute__((always_inline)) {
                  const Vec<float> largest = largest_of(largest_of(red, green), blue);
                  const Vec<float> chroma = largest - smallest_of(smallest_of(red, green), blue);
                  const Mask<float> is_red = largest == red, is_green = largest == green;
                  const Vec<float> difference = is_red ? green - blue : (is_green ? blue - red : red - green);
                  const Vec<float> start = is_red ? Vec<float>{} : (is_green ? broadcast(2.0f) : broadcast(4.0f));
                  Vec<float> sixths = start + difference / (chroma == 0.0f ? broadcast(1.0f) : chroma) + turn;
                  sixths = sixths < 0.0f ? sixths + 6.0f : sixths;
                  sixths = sixths >= 6.0f ? sixths - 6.0f : sixths;
                  red = channel_of(sixths, 5.0f, largest, chroma);
                  green = channel_of(sixths, 3.0f, largest, chroma);
                  blue = channel_of(sixths, 1.0f, largest, chroma);
                });
}

// ln(x) of normal positive numbers, to about one unit in the last place.
DEEPCLUST_INLINE Vec<float> logarithm(const Vec<float>& x) {
  const Mask<float> bits = reinterpret_cast<Mask<float>>(x) - 0x3f3504f3;  // of the root of 1/2
  const Vec<float> power = __builtin_convertvector(bits >> 23, Vec<float>);
  const Vec<float> rest = reinterpret_cast<Vec<float>>((bits & 0x7fffff) + 0x3f3504f3);  // up to the root of 2
  const Vec<float> s = (rest - 1.0f) / (rest + 1.0f), s2 = s * s;
  const Vec<float> series = ((((s2 / 11 + 1.0f / 9) * s2 + 1.0f / 7) * s2 + 0.2f) * s2 + 1.0f / 3) * s2 + 1.0f;
  return power * 0x1.62e43p-1f + 2.0f * s * series;
}

// x^power. What is neither 0 nor a normal number, or has too large a power, is left to the library, lane by lane: no
// value depends on its neighbors, of which some lie behind the end.
inline void raise(float* values, int64_t count, float power) {
  change_values(values, count, [&](const Vec<float>& x) __attribute__((always_inline)) {
    const Mask<float> is_zero = x == 0.0f;
    const Vec<float> base = is_zero ? broadcast(1.0f) : x;
    const Mask<float> is_normal = (base >= std::numeric_limits<float>::min()) & (base <= 0x1p100f);
    const Vec<float> exponent = logarithm(is_normal ? base : broadcast(1.0f)) * power;
    const Mask<float> fits = is_normal & (exponent < 88.0f) & (exponent > -87.0f);
    Vec<float> result = is_zero ? Vec<float>{} : exponential<float>(fits ? exponent : Vec<float>{});
    const Mask<float> is_left = power > 0 ? ~fits : Mask<float>{} - 1;
    if (any_lane<float>(is_left)) {
      for (int64_t lane = 0; lane < VecOf<float>::kLanes; ++lane) {
        if (is_left[lane] != 0) result[lane] = std::pow(x[lane], power);
      }
    }
    return result;
  });
}

inline void posterize(float* values, int64_t count, float bits) {
  const float levels = static_cast<float>(std::pow(2.0, static_cast<double>(bits)));
  change_values(values, count, [&](const Vec<float>& x) __attribute__((always_inline)) {
    const Vec<float> level = x * levels, above = floor_of(level < 0.0f ? Vec<float>{} : level);
    return (above > levels - 1 ? broadcast(levels - 1) : above) / levels;
  });
}

// What steps have to know of the whole image.
struct ViewFacts {
  float mean;               // of the gray image
  float *lowest, *highest;  // (C,)
};

// Does a step on a strip of `count` pixels from `values` on, of all channels.
inline void apply_point(const ViewRecipe& recipe, AugmentStep step, float strength, const ViewFacts& facts,
                        float* values, int64_t count) {
  const int64_t stride = recipe.stride;
  const bool is_colored = recipe.channels == 3;
  const float other = static_cast<float>(1 - static_cast<double>(strength));
  const auto each = [&](const auto& change) __attribute__((always_inline)) {
    for (int64_t c = 0; c < recipe.channels; ++c) change_values(values + c * stride, count, change);
  };
  switch (step) {
    case AugmentStep::kBrightness:
      return each([&](const Vec<float>& x) __attribute__((always_inline)) { return clamp_unit(x * strength); });
    case AugmentStep::kContrast:
      return each([&](const Vec<float>& x)
                      __attribute__((always_inline)) { return clamp_unit(x * strength + facts.mean * other); });
    case AugmentStep::kSaturation:
      if (!is_colored) return;
      return change_colors(values, stride, count,
                           [&](Vec<float>& red, Vec<float>& green, Vec<float>& blue) __attribute__((always_inline)) {
                             const Vec<float> gray = gray_of(red, green, blue) * other;
                             red = clamp_unit(red * strength + gray);
                             green = clamp_unit(green * strength + gray);
                             blue = clamp_unit(blue * strength + gray);
                           });
    case AugmentStep::kHue:
      if (is_colored) turn_hue(values, stride, count, strength);
      return;
    case AugmentStep::kGray:
      if (!is_colored) return;
      return change_colors(values, stride, count,
                           [](Vec<float>& red, Vec<float>& green, Vec<float>& blue)
                               __attribute__((always_inline)) { red = green = blue = gray_of(red, green, blue); });
    case AugmentStep::kSolarize:
      return each([&](const Vec<float>& x) __attribute__((always_inline)) { return x >= strength ? 1.0f - x : x; });
    case AugmentStep::kPosterize:
      for (int64_t c = 0; c < recipe.channels; ++c) posterize(values + c * stride, count, strength);
      return;
    case AugmentStep::kAutocontrast:
      for (int64_t c = 0; c < recipe.channels; ++c) {
        const float low = facts.lowest[c], range = facts.highest[c] - low;
        change_values(values + c * stride, count, [&](const Vec<float>& x) __attribute__((always_inline)) {
          return clamp_unit(range == 0 ? x : (x - low) / range);
        });
      }
      return;
    case AugmentStep::kGamma:
      for (int64_t c = 0; c < recipe.channels; ++c) raise(values + c * stride, count, strength);
      return;
    default:
      return;
  }
}

// The mean of the gray image, or without three channels of all.
inline float gray_mean(const ViewRecipe& recipe, const float* values) {
  const int64_t pixels = recipe.height * recipe.width, stride = recipe.stride;
  double sum = 0;
  const auto add = [&](int64_t begin, const auto& vector_term, const auto& scalar_term) {
    const int64_t count = pixels - begin < kStripPixels ? pixels - begin : kStripPixels;
    sum += sum_terms<float>(count, vector_term, scalar_term);
  };
  for (int64_t begin = 0; begin < pixels; begin += kStripPixels) {
    const float* strip = values + begin;
    if (recipe.channels == 3) {
      add(
          begin,
          [&](int64_t k) __attribute__((always_inline)) {
            return gray_of(load(strip + k), load(strip + stride + k), load(strip + 2 * stride + k));
          },
          [&](int64_t k) __attribute__((always_inline)) {
            return 0.2989f * strip[k] + 0.587f * strip[stride + k] + 0.114f * strip[2 * stride + k];
          });
      continue;
    }
    for (int64_t c = 0; c < recipe.channels; ++c) {
      const float* channel = strip + c * stride;
      add(
          begin, [&](int64_t k) __attribute__((always_inline)) { return load(channel + k); },
          [&](int64_t k) __attribute__((always_inline)) { return channel[k]; });
    }
  }
  return static_cast<float>(sum / static_cast<double>(recipe.channels == 3 ? pixels : recipe.channels * pixels));
}

inline void find_extremes(const ViewRecipe& recipe, const float* values, const ViewFacts& facts) {
  constexpr int64_t kLanes = VecOf<float>::kLanes;
  const int64_t pixels = recipe.height * recipe.width;
  for (int64_t c = 0; c < recipe.channels; ++c, values += recipe.stride) {
    Vec<float> low = broadcast(values[0]), high = low;
    Mask<float> is_nan{};
    int64_t i = 0;
    for (; i + kLanes <= pixels; i += kLanes) {
      const Vec<float> x = load(values + i);
      low = smallest_of(low, x);
      high = largest_of(high, x);
      is_nan |= x != x;
    }
    bool has_nan = any_lane<float>(is_nan);
    float lowest = -max_lanes<float>(-low), highest = max_lanes<float>(high);
    for (; i < pixels; ++i) {
      lowest = values[i] < lowest ? values[i] : lowest;
      highest = values[i] > highest ? values[i] : highest;
      has_nan = has_nan || std::isnan(values[i]);
    }
    // A comparison forgets a NaN; as the lowest value it makes the whole channel NaN.
    facts.lowest[c] = has_nan ? std::numeric_limits<float>::quiet_NaN() : lowest;
    facts.highest[c] = highest;
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

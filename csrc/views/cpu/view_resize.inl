// Crop and resize of augment_views. No include guard: compiled once per capability.

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Fills the table of a side, in the order of torch's roundings to float32: they move the weights of large images by
// more than the pixels' own rounding.
inline void fill_resize_table(int64_t from, int64_t to, bool flip, float factor, ResizeTable& table) {
  const float scale = static_cast<float>(from) / static_cast<float>(to);
  const float support = scale >= 1 ? scale : 1.0f;
  const float inverse = scale >= 1 ? 1.0f / scale : 1.0f;
  const auto center_of = [&](int64_t i) { return static_cast<float>(static_cast<double>(scale) * (i + 0.5)); };
  const int64_t widest = 2 * static_cast<int64_t>(std::ceil(support)) + 1, most = from < widest ? from : widest;
  const auto slot_of = [&](int64_t i) { return flip ? to - 1 - i : i; };
  table.taps = 1;
  for (int64_t i = 0; i < to; ++i) {
    const float center = center_of(i);
    const int64_t begin = static_cast<int64_t>(static_cast<double>(center - support) + 0.5);
    const int64_t end = static_cast<int64_t>(static_cast<double>(center + support) + 0.5);
    const int64_t first = begin > 0 ? begin : 0;
    int64_t count = (end < from ? end : from) - first;
    if (count > most) count = most;
    table.first[slot_of(i)] = static_cast<int32_t>(first);
    table.count[slot_of(i)] = static_cast<int32_t>(count);
    if (count > table.taps) table.taps = count;
  }
  for (int64_t i = 0; i < to; ++i) {
    const int64_t slot = slot_of(i), begin = table.first[slot], last_first = from - table.taps;
    const int64_t first = begin < last_first ? begin : last_first;  // so that no more is read than there is
    const float center = center_of(i);
    float* weights = table.weights + slot * table.taps;
    for (int64_t j = 0; j < table.taps; ++j) weights[j] = 0;
    float total = 0;
    for (int64_t j = begin; j < begin + table.count[slot]; ++j) {
      const double away = (static_cast<double>(static_cast<float>(j) - center) + 0.5) * inverse;
      const float distance = std::fabs(static_cast<float>(away));
      weights[j - first] = distance < 1 ? 1 - distance : 0;
      total += weights[j - first];
    }
    for (int64_t j = 0; j < table.taps; ++j) weights[j] = total != 0 ? weights[j] / total * factor : 0;
    table.first[slot] = static_cast<int32_t>(first);
  }
}

// Calls use() with the number of taps: one that the compiler knows where it is common.
template <typename Use>
DEEPCLUST_INLINE void with_taps(int64_t taps, const Use& use) {
  if (taps == 2) {
    use(std::integral_constant<int64_t, 2>());
  } else if (taps == 3) {
    use(std::integral_constant<int64_t, 3>());
  } else {
    use(taps);
  }
}

// Resizes kResizeRows rows.
inline void resize_rows(const float* const* rows /* (kResizeRows,) */, const ResizeTable& table, int64_t width,
                        float* resized /* (kResizeRows, stride) */, int64_t stride) {
  with_taps(table.taps, [&](auto taps) __attribute__((always_inline)) {
    const float* weights = table.weights;
    for (int64_t x = 0; x < width; ++x, weights += taps) {
      const int64_t first = table.first[x];
      float sum[kResizeRows] = {};
      for (int64_t j = 0; j < taps; ++j) {
        // Compilers may multiply some taps ahead, and then add them up one by one: two roundings instead of one, with
        // one instruction set and not another. They leave a loop alone whose counter they do not know.
        if constexpr (std::is_same_v<decltype(taps), int64_t>) __asm__("" : "+r"(j));
#pragma GCC unroll 4
        for (int64_t r = 0; r < kResizeRows; ++r) sum[r] += weights[j] * rows[r][first + j];
      }
#pragma GCC unroll 4
      for (int64_t r = 0; r < kResizeRows; ++r) resized[r * stride + x] = sum[r];
    }
  });
}

inline void resize_columns(const float* rows /* (n, stride) */, int64_t stride, const ResizeTable& table,
                           int64_t height, int64_t width, float* view /* (height, width) */) {
  constexpr int64_t kLanes = VecOf<float>::kLanes;
  with_taps(table.taps, [&](auto taps) __attribute__((always_inline)) {
    for (int64_t y = 0; y < height; ++y) {
      const float* from = rows + table.first[y] * stride;
      const float* weights = table.weights + y * taps;
      for (int64_t x = 0; x < width; x += kLanes) {
        Vec<float> sum{};
        for (int64_t j = 0; j < taps; ++j) sum += weights[j] * load(from + j * stride + x);
        store(view + y * width + x, sum);
      }
    }
  });
}

// The image's box, resized and flipped, from 0 to 1.
template <typename Pixel>
void load_view(const ViewRecipe& recipe, const ViewRequest& request, const Pixel* image, ViewMemory& memory) {
  const int64_t height = recipe.height, width = recipe.width, columns = request.columns;
  const bool is_resized = request.rows != height || columns != width;
  if (is_resized) {
    fill_resize_table(columns, width, request.flip, 1 / recipe.white, memory.across);
    fill_resize_table(request.rows, height, false, 1, memory.down);
  }
  const int64_t row_stride = columns + kViewSlack, stride = width + kViewSlack;
  for (int64_t c = 0; c < recipe.channels; ++c) {
    const Pixel* box = image + (c * request.image_height + request.top) * request.image_width + request.left;
    float* plane = memory.values + c * recipe.stride;
    if (!is_resized) {
      for (int64_t y = 0; y < height; ++y, box += request.image_width, plane += width) {
        if (request.flip) {
          for (int64_t x = 0; x < width; ++x) plane[x] = static_cast<float>(box[width - 1 - x]) / recipe.white;
        } else {
          for (int64_t x = 0; x < width; ++x) plane[x] = static_cast<float>(box[x]) / recipe.white;
        }
      }
      continue;
    }
    for (int64_t y = 0; y < request.rows; y += kResizeRows) {
      const float* rows[kResizeRows];
      for (int64_t r = 0; r < kResizeRows; ++r) {
        const int64_t last = request.rows - 1;  // again, where there are no four rows
        const Pixel* from = box + (y + r < last ? y + r : last) * request.image_width;
        if constexpr (std::is_same_v<Pixel, float>) {
          rows[r] = from;
        } else {
          float* row = memory.rows + r * row_stride;
          for (int64_t x = 0; x < columns; ++x) row[x] = static_cast<float>(from[x]);
          rows[r] = row;
        }
      }
      resize_rows(rows, memory.across, width, memory.resized + y * stride, stride);
    }
    resize_columns(memory.resized, stride, memory.down, height, width, plane);
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

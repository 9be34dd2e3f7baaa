// The steps of augment_views that make a pixel of several others: crop and resize, moves, blur, sharpness.
//
// Where a coordinate decides which pixels are taken, products are rounded before they are added, as torch rounds them:
// a multiply-add would take others at a tie.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "views/cuda/augment_points.cuh"
#include "views/cuda/augment_views.cuh"

namespace deepclust {

// The part of an image that a view shows.
struct Crop {
  const void* pixels;  // its first
  int64_t strides[3];
  int height, width;
  float white;  // what becomes 1
  int flip;     // 1: left and right
};

// Channels of a view in the workspace.
struct Planes {
  const float* values;  // (channels, height, width)
  int height, width;

  __device__ __forceinline__ const float* channel(int64_t c) const { return values + c * height * width; }
};

template <class Pixel>
__device__ __forceinline__ float value_of(Pixel pixel) {
  if constexpr (std::is_same<Pixel, __half>::value || std::is_same<Pixel, __nv_bfloat16>::value) {
    return widen(pixel);
  } else {
    return static_cast<float>(pixel);
  }
}

// The pixels of one row or column of the crop that one of the view is made of, with torch's weights of
// _upsample_bilinear2d_aa: a triangle, as wide as the view's pixel or the crop's, whichever is larger.
struct Taps {
  int first, end;
  float center, inverse_scale;

  __device__ __forceinline__ Taps(int place, int from, int to) {
    center = place + 0.5f;
    inverse_scale = 0;  // a pixel alone has the weight 1, without a rounding
    first = place;
    end = place + 1;
    if (from == to) return;
    const float scale = static_cast<float>(from) / static_cast<float>(to), support = larger(scale, 1.0f);
    center = __fmul_rn(scale, center);
    first = max(static_cast<int>(center - support + 0.5f), 0);
    end = min(static_cast<int>(center + support + 0.5f), from);
    if (end - first > 1) inverse_scale = 1 / support;
  }

  __device__ __forceinline__ float weight(int tap) const {
    return larger(1 - fabsf((static_cast<float>(tap) - center + 0.5f) * inverse_scale), 0.0f);
  }
};

template <class Pixel, int kChannels>
__device__ __forceinline__ void resize(const Crop& crop, int height, int width, int y, int x, int64_t channel,
                                       float (&v)[kChannels]) {
  const Taps rows(y, crop.height, height), columns(crop.flip != 0 ? width - 1 - x : x, crop.width, width);
  const Pixel* pixels = static_cast<const Pixel*>(crop.pixels) + channel * crop.strides[0];
  float sum[kChannels] = {}, total = 0;
  for (int row = rows.first; row < rows.end; ++row) {
    const float row_weight = rows.weight(row);
    float row_sum[kChannels] = {}, row_total = 0;
    for (int column = columns.first; column < columns.end; ++column) {
      const float weight = columns.weight(column);
      const Pixel* pixel = pixels + row * crop.strides[1] + column * crop.strides[2];
      row_total += weight;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) row_sum[c] += weight * value_of(pixel[c * crop.strides[0]]);
    }
    total += row_weight * row_total;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum[c] += row_weight * row_sum[c];
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) v[c] = sum[c] / total / crop.white;
}

// Where the pixels of a moved view come from: x and y from the view's middle, by a matrix (2, 3).
struct Move {
  float matrix[6];
  float to_grid[2];  // from pixels to halves of the width and the height

  // In columns and rows of the view; just outside of it for what is further away, and for NaN.
  __device__ __forceinline__ void source(int height, int width, int y, int x, float& from_y, float& from_x) const {
    const float right = static_cast<float>(x) - (width - 1) * 0.5f, down = static_cast<float>(y) - (height - 1) * 0.5f;
    const auto place = [&](const float* row, float scale, int side) {
      const float from = __fmul_rn(__fmul_rn(row[0], right) + __fmul_rn(row[1], down) + row[2], scale);
      return fminf(fmaxf(__fmul_rn(from + 1, side * 0.5f) - 0.5f, -2.0f), static_cast<float>(side) + 1);
    };
    from_x = place(matrix, to_grid[0], width);
    from_y = place(matrix + 3, to_grid[1], height);
  }
};

template <int kChannels>
__device__ __forceinline__ void move_bilinear(const Planes& view, const Move& move, int y, int x, int64_t channel,
                                              float (&v)[kChannels]) {
  float from_y, from_x;
  move.source(view.height, view.width, y, x, from_y, from_x);
  const float north = floorf(from_y), west = floorf(from_x);
  const float south_weight = from_y - north, east_weight = from_x - west;
  const int top = static_cast<int>(north), left = static_cast<int>(west);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const float* values = view.channel(channel + c);
    const auto at = [&](int row, int column) {
      const bool inside = row >= 0 && row < view.height && column >= 0 && column < view.width;
      return inside ? values[int64_t{row} * view.width + column] : 0.0f;
    };
    v[c] = (1 - east_weight) * (1 - south_weight) * at(top, left) +
           east_weight * (1 - south_weight) * at(top, left + 1) + (1 - east_weight) * south_weight * at(top + 1, left) +
           east_weight * south_weight * at(top + 1, left + 1);
  }
}

template <int kChannels>
__device__ __forceinline__ void move_nearest(const Planes& view, const Move& move, int y, int x, int64_t channel,
                                             float (&v)[kChannels]) {
  float from_y, from_x;
  move.source(view.height, view.width, y, x, from_y, from_x);
  const int row = static_cast<int>(rintf(from_y)), column = static_cast<int>(rintf(from_x));  // ties to even
  const bool inside = row >= 0 && row < view.height && column >= 0 && column < view.width;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    v[c] = inside ? view.channel(channel + c)[int64_t{row} * view.width + column] : 0.0f;
  }
}

// Half of a Gaussian from its middle, not normalized.
struct Gaussian {
  const float* weights;  // (radius + 1,)
  int radius;            // below the side of the view along which it is blurred
  float total;           // of the whole Gaussian's weights

  // One place of a line, mirrored at both ends.
  __device__ __forceinline__ float apply(const float* line, int64_t stride, int size, int place) const {
    float sum = 0;
    if (place >= radius && place + radius < size) {
      const float* value = line + (place - radius) * stride;
      for (int tap = -radius; tap <= radius; ++tap, value += stride) sum += weights[abs(tap)] * *value;
    } else {
      for (int tap = -radius; tap <= radius; ++tap) {
        const int from = abs(place + tap);
        sum += weights[abs(tap)] * line[(from < size ? from : 2 * (size - 1) - from) * stride];
      }
    }
    return sum / total;
  }
};

template <int kChannels>
__device__ __forceinline__ void blur(const Planes& view, const Gaussian& gaussian, bool columns, int y, int x,
                                     int64_t channel, float (&v)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const float* values = view.channel(channel + c);
    v[c] = columns ? gaussian.apply(values + x, view.width, view.height, y)
                   : gaussian.apply(values + int64_t{y} * view.width, 1, view.width, x);
  }
}

// Views of more than two rows and columns.
template <int kChannels>
__device__ __forceinline__ void sharpen(const Planes& view, float share, int y, int x, int64_t channel,
                                        float (&v)[kChannels]) {
  const bool border = y == 0 || x == 0 || y == view.height - 1 || x == view.width - 1;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const float* value = view.channel(channel + c) + int64_t{y} * view.width + x;
    float smooth = *value;
    if (!border) {
      float sum = 4 * smooth;
      for (int64_t row = -1; row <= 1; ++row) {
        for (int column = -1; column <= 1; ++column) sum += value[row * view.width + column];
      }
      smooth = sum / 13;
    }
    v[c] = blend(*value, smooth, share);
  }
}

}  // namespace deepclust

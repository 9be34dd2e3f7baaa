// What two views and a queue share: what the kernels read, and the ways to losses and gradients. Included after the
// kernels of fused_contrastive_loss.inl; fused_contrastive_loss.cpp explains the method.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "contrastive/contrastive_row.h"
#include "contrastive/cpu/packed_rows.h"
#include "core/dtypes.h"

namespace deepclust {
namespace {

// Between the least and the largest exponent: sums of exponentials down to exp(-64), and their inverses times a
// gradient, are still normal floats, so that no maximum is searched.
constexpr double kMaxUnshiftedSpan = 64;

enum Input { kZA, kZB, kClassA, kClassB, kQueue, kClassQueue, kInputs };
using InputMask = std::array<bool, kInputs>;
using InputGradients = std::array<at::Tensor, kInputs>;

// What the kernels read of anchors that are compared with some rows: with two views the same.
template <typename T>
PackedContrastive<T> packed_contrastive(const PackedRows<T>& anchors, const PackedRows<T>& rows, bool two_views,
                                        const ContrastiveOptions& options) {
  const T scale = 1 / options.temperature;
  const T bound = scale * anchors.largest_norm() * rows.largest_norm();
  const T hardness = std::max(static_cast<T>(options.hardness), std::numeric_limits<T>::min());
  return {.two_views = two_views,
          .count = rows.count(),
          .depth = rows.depth(),
          .stride = rows.stride(),
          .rows = rows.rows(),
          .column_rows = anchors.rows(),
          .column_panels = anchors.panels(),
          .column_bias = anchors.bias(),
          .score_scale = scale,
          .hardness = options.hardness > 0 ? hardness : T(0),
          .bound = bound,
          .bounded = 2 * (1 + options.hardness) * bound <= kMaxUnshiftedSpan};
}

// The losses of all anchors, and their row_values.
template <typename T>
void write_losses(const std::vector<T>& positive, const std::vector<LogSums<T>>& sums, const Options& options,
                  T* losses,  // (anchors,)
                  T* values   // (kContrastiveValues, anchors)
) {
  const int64_t count = static_cast<int64_t>(sums.size());
  at::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ContrastiveSums own{sums[i].shift, sums[i].sum, sums[i].weight_sum};
      const ContrastiveRow row = contrastive_row(positive[i], own, options.loss);
      losses[i] = static_cast<T>(row.loss);
      values[kPositiveSlope * count + i] = static_cast<T>(row.positive_slope);
      values[kSlope * count + i] = static_cast<T>(row.slope);
      values[kWeightSlope * count + i] = static_cast<T>(row.weight_slope);
      values[kShift * count + i] = own.sum > 0 ? sums[i].shift : T(0);
    }
  });
}

// The scores of the positives of all anchors, and the logarithms of both sums over their negatives.
template <typename T>
void write_log_sums(const std::vector<T>& positive, const std::vector<LogSums<T>>& sums, double hardness,
                    double* values  // (3, anchors)
) {
  const int64_t count = static_cast<int64_t>(sums.size());
  for (int64_t i = 0; i < count; ++i) {
    values[i] = positive[i];
    values[count + i] = std::log(sums[i].sum) + (1 + hardness) * sums[i].shift;  // -inf without any
    values[2 * count + i] = hardness > 0 ? std::log(sums[i].weight_sum) + hardness * sums[i].shift : 0;
  }
}

// Slopes of the anchors times the gradients of their losses, by products instead of scores.
template <typename T>
at::Tensor slopes_of(T score_scale, const at::Tensor& grad_loss, const at::Tensor& row_values,
                     std::string_view reduction) {
  const int64_t count = row_values.size(1);
  const at::Tensor grad = to_accumulation(grad_loss);
  const at::Tensor slopes = at::empty({kShift, count}, row_values.options());  // all values before the shift
  const T* grads = grad.template const_data_ptr<T>();
  const T* values = row_values.template const_data_ptr<T>();
  T* slope = slopes.template mutable_data_ptr<T>();
  const double share = score_scale / (reduction == "mean" ? static_cast<double>(count) : 1.0);
  for (int64_t which = 0; which < kShift; ++which) {
    for (int64_t i = 0; i < count; ++i) {
      const double own = share * grads[reduction == "none" ? i : 0];
      slope[which * count + i] = static_cast<T>(own * values[which * count + i]);
    }
  }
  return slopes;
}

// Slopes as they are given, relative to the shifts of the anchors, by products instead of scores. Where one bound holds
// for all scores, they become relative to it. With their own negatives here no factor is above exp(span).
template <typename T>
at::Tensor slopes_of_log_sums(const PackedContrastive<T>& in, const at::Tensor& row_values) {
  const int64_t count = row_values.size(1);
  const at::Tensor slopes = at::empty({kShift, count}, row_values.options());
  const T* values = row_values.template const_data_ptr<T>();
  T* slope = slopes.template mutable_data_ptr<T>();
  const double growth[kShift] = {0, 1 + double(in.hardness), double(in.hardness)};
  for (int64_t which = 0; which < kShift; ++which) {
    for (int64_t i = 0; i < count; ++i) {
      const double change = in.bounded ? growth[which] * (double(in.bound) - values[kShift * count + i]) : 0;
      const double factor = std::exp(std::min(change, kMaxUnshiftedSpan));
      slope[which * count + i] = static_cast<T>(in.score_scale * factor * values[which * count + i]);
    }
  }
  return slopes;
}

// The values of the anchors from slopes of products.
template <typename T>
AnchorValues<T> anchor_values(const at::Tensor& slopes, const at::Tensor& row_values) {
  const int64_t count = row_values.size(1);
  const T* slope = slopes.template const_data_ptr<T>();
  return {slope + kPositiveSlope * count, slope + kSlope * count, slope + kWeightSlope * count,
          row_values.template const_data_ptr<T>() + kShift * count};
}

// Gradients by packed rows, 0 so far.
template <typename T>
at::Tensor new_gradient(int64_t rows, int64_t stride) {
  return at::zeros({rows, stride}, c10::CppTypeToScalarType<T>::value);
}

// From the gradient by the packed rows of input `which` to those of its features and class vectors that are wanted.
template <typename T>
void write_gradients(const PackedRows<T>& rows, const T* gradient /* (count, stride) */, size_t which, Input z,
                     Input classes, const InputMask& wanted, InputGradients& gradients) {
  if (wanted[z]) gradients[z] = rows.feature_gradient(gradient, which);
  if (wanted[classes]) gradients[classes] = rows.class_gradient(gradient, which);
}

}  // namespace
}  // namespace deepclust

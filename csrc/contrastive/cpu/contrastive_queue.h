// The contrastive loss with a queue: anchors are z_a, their positives z_b, and their negatives the rows of the queue,
// which are packed block by block. Included after the kernels of fused_contrastive_loss.inl; fused_contrastive_loss.cpp
// explains the method.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "contrastive/cpu/contrastive_problem.h"
#include "contrastive/cpu/packed_rows.h"
#include "contrastive/cpu/streamed_rows.h"
#include "core/dtypes.h"

namespace deepclust {
namespace {

// to_i += slope_i from_i
template <typename T>
void add_scaled_rows(const T* slope, const T* from, int64_t count, int64_t stride, T* to) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < stride; ++k) to[i * stride + k] += slope[i] * from[i * stride + k];
  }
}

template <typename T>
class WithQueue {
 public:
  WithQueue(const at::Tensor& z_a, const at::Tensor& z_b, const OptionalTensor& class_a, const OptionalTensor& class_b,
            const at::Tensor& queue, const OptionalTensor& class_queue, const Options& options)
      : pairs_({{z_a, class_a}}, {{queue, class_queue}}, options), positives_({{z_b, class_b}}, options, Keep::kRows) {}

  bool is_finite() const {
    const PackedContrastive<T>& in = pairs_.packed();
    const T positive_bound = in.score_scale * pairs_.columns().largest_norm() * positives_.largest_norm();
    return std::isfinite(in.bound) && std::isfinite(positive_bound);
  }

  int64_t stride() const { return pairs_.packed().stride; }

  // The sums over the queue of every anchor, the score of its positive, and what is kept of the queue's rows.
  void sum(LogSums<T>* sums,  // (anchors,)
           T* positive,       // (anchors,)
           const KeptRows<T>& kept /* (anchors, stride) each */) const {
    const PackedRows<T>& anchors = pairs_.columns();
    DEEPCLUST_SELECT(score_pairs<T>)(anchors.rows(), positives_.rows(), anchors.count(), anchors.stride(),
                                     pairs_.packed().score_scale, positive);
    pairs_.sum(nullptr, sums, kept);
  }

  // The derivative of every anchor's loss by its own row, but for the scale of the scores, from what is kept of the
  // queue: slope sum - weight_slope weight_sum + positive_slope positive.
  void write_anchor_gradient(const KeptRows<T>& kept,
                             const T* values,  // (kContrastiveValues, anchors)
                             T* gradient       // (anchors, depth)
  ) const {
    const int64_t count = positives_.count(), depth = positives_.depth(), stride = positives_.stride();
    for (int64_t i = 0; i < count; ++i) {
      const T* positive = positives_.rows() + i * stride;
      for (int64_t k = 0; k < depth; ++k) {
        T sum =
            values[kPositiveSlope * count + i] * positive[k] + values[kSlope * count + i] * kept.sum[i * stride + k];
        if (kept.weight_sum != nullptr) sum -= values[kWeightSlope * count + i] * kept.weight_sum[i * stride + k];
        gradient[i * depth + k] = sum;
      }
    }
  }

  // The gradients that are wanted: through the queue's scores, and through those of the positives.
  InputGradients gradients(const AnchorValues<T>& of_anchors, const InputMask& wanted) const {
    const PackedRows<T>&anchors = pairs_.columns(), &rows = pairs_.rows();
    const int64_t count = anchors.count(), stride = anchors.stride();
    const bool want_a = wanted[kZA] || wanted[kClassA], want_b = wanted[kZB] || wanted[kClassB];
    const bool want_queue = wanted[kQueue] || wanted[kClassQueue];
    InputGradients result;
    const at::Tensor anchor_gradient = new_gradient<T>(count, stride);
    const at::Tensor queue_gradient = new_gradient<T>(want_queue ? rows.count() : 0, stride);
    T* by_anchor = anchor_gradient.template mutable_data_ptr<T>();
    T* by_queue = queue_gradient.template mutable_data_ptr<T>();
    if (want_a || want_queue) pairs_.add_gradients({}, of_anchors, want_queue, want_a, by_queue, by_anchor);
    if (want_queue) write_gradients(rows, by_queue, 0, kQueue, kClassQueue, wanted, result);
    if (want_a) {
      add_scaled_rows(of_anchors.positive_slope, positives_.rows(), count, stride, by_anchor);
      write_gradients(anchors, by_anchor, 0, kZA, kClassA, wanted, result);
    }
    if (want_b) {
      const at::Tensor positive_gradient = new_gradient<T>(count, stride);
      T* by_positive = positive_gradient.template mutable_data_ptr<T>();
      add_scaled_rows(of_anchors.positive_slope, anchors.rows(), count, stride, by_positive);
      write_gradients(positives_, by_positive, 0, kZB, kClassB, wanted, result);
    }
    return result;
  }

 private:
  StreamedRows<T> pairs_;
  PackedRows<T> positives_;
};

// Gradients where the forward pass has kept those of the anchors: no row of the queue is read again.
template <typename T>
InputGradients gradients_of_kept(const at::Tensor& grad_loss, const at::Tensor& z_a, const at::Tensor& z_b,
                                 const at::Tensor& row_values, const at::Tensor& anchor_gradient,
                                 const OptionalTensor& class_a, const OptionalTensor& class_b, const Options& options,
                                 std::string_view reduction, const InputMask& wanted) {
  const int64_t count = anchor_gradient.size(0), depth = anchor_gradient.size(1);
  const bool want_b = wanted[kZB] || wanted[kClassB];
  const PackedRows<T> anchors({{z_a, class_a}}, options, want_b ? Keep::kRows : Keep::kNorms);
  const at::Tensor slopes = slopes_of<T>(1 / options.loss.temperature, grad_loss, row_values, reduction);
  InputGradients result;
  std::vector<T> gradient(count * anchors.stride());
  if (wanted[kZA] || wanted[kClassA]) {
    const double share = 1 / options.loss.temperature / (reduction == "mean" ? static_cast<double>(count) : 1.0);
    const at::Tensor grad = to_accumulation(grad_loss);
    const T* grads = grad.template const_data_ptr<T>();
    const T* from = anchor_gradient.template const_data_ptr<T>();
    for (int64_t i = 0; i < count; ++i) {
      const T own = share * grads[reduction == "none" ? i : 0];
      for (int64_t k = 0; k < depth; ++k) gradient[i * anchors.stride() + k] = own * from[i * depth + k];
    }
    write_gradients(anchors, gradient.data(), 0, kZA, kClassA, wanted, result);
  }
  if (want_b) {
    const PackedRows<T> positives({{z_b, class_b}}, options, Keep::kNorms);
    std::fill(gradient.begin(), gradient.end(), T(0));
    const T* positive_slope = slopes.template const_data_ptr<T>() + kPositiveSlope * count;
    add_scaled_rows(positive_slope, anchors.rows(), count, anchors.stride(), gradient.data());
    write_gradients(positives, gradient.data(), 0, kZB, kClassB, wanted, result);
  }
  return result;
}

}  // namespace
}  // namespace deepclust

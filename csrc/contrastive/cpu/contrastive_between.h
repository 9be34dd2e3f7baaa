// The pairs between two sets of rows, all of them anchors: those of z_a and z_b, and those of a queue. Every pair of
// blocks serves the rows of both, and none of them is a positive. Included after the kernels of
// fused_contrastive_loss.inl; fused_contrastive_loss.cpp explains the method.
#pragma once

#include <cmath>
#include <cstdint>

#include "contrastive/cpu/contrastive_problem.h"
#include "contrastive/cpu/streamed_rows.h"

namespace deepclust {
namespace {

template <typename T>
class Between {
 public:
  Between(const at::Tensor& z_a, const at::Tensor& z_b, const OptionalTensor& class_a, const OptionalTensor& class_b,
          const at::Tensor& queue, const OptionalTensor& class_queue, const Options& options)
      : pairs_({{queue, class_queue}}, {{z_a, class_a}, {z_b, class_b}}, options) {}

  bool is_finite() const { return std::isfinite(packed().bound); }

  const PackedContrastive<T>& packed() const { return pairs_.packed(); }

  // The sums of every anchor over the rows of the other set.
  void sum(LogSums<T>* sums,  // (anchors,) z_a and z_b, then the queue
           T* /* positive */) const {
    pairs_.sum(sums, sums + packed().count, KeptRows<T>());
  }

  // The gradients that are wanted.
  InputGradients gradients(const AnchorValues<T>& of_anchors, const InputMask& wanted) const {
    const int64_t count = packed().count, stride = packed().stride;
    const bool want_rows = wanted[kZA] || wanted[kClassA] || wanted[kZB] || wanted[kClassB];
    const bool want_queue = wanted[kQueue] || wanted[kClassQueue];
    const AnchorValues<T> of_queue{of_anchors.positive_slope + count, of_anchors.slope + count,
                                   of_anchors.weight_slope + count, of_anchors.shift + count};
    const at::Tensor row_gradient = new_gradient<T>(want_rows ? count : 0, stride);
    const at::Tensor queue_gradient = new_gradient<T>(pairs_.columns().count(), stride);
    T* by_row = row_gradient.template mutable_data_ptr<T>();
    T* by_queue = queue_gradient.template mutable_data_ptr<T>();
    pairs_.add_gradients(of_anchors, of_queue, want_rows, want_queue, by_row, by_queue);
    InputGradients result;
    write_gradients(pairs_.rows(), by_row, 0, kZA, kClassA, wanted, result);
    write_gradients(pairs_.rows(), by_row, 1, kZB, kClassB, wanted, result);
    write_gradients(pairs_.columns(), by_queue, 0, kQueue, kClassQueue, wanted, result);
    return result;
  }

 private:
  StreamedRows<T> pairs_;
};

}  // namespace
}  // namespace deepclust

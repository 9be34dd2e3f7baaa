// The contrastive loss of two views: every row is an anchor, and so is every row that it is compared with. Included
// after the kernels of fused_contrastive_loss.inl; fused_contrastive_loss.cpp explains the method.
#pragma once

#include <cmath>
#include <cstdint>

#include "contrastive/cpu/block_pairs.h"
#include "contrastive/cpu/contrastive_problem.h"
#include "contrastive/cpu/packed_rows.h"

namespace deepclust {
namespace {

template <typename T>
class TwoViews {
 public:
  TwoViews(const at::Tensor& z_a, const at::Tensor& z_b, const OptionalTensor& class_a, const OptionalTensor& class_b,
           const Options& options)
      : anchors_({{z_a, class_a}, {z_b, class_b}}, options, Keep::kRowsAndPanels),
        in_(packed_contrastive(anchors_, anchors_, true, options.loss)) {}

  bool is_finite() const { return std::isfinite(in_.bound); }

  const PackedContrastive<T>& packed() const { return in_; }

  // The sums over the negatives of every anchor, and the score of its positive.
  void sum(LogSums<T>* sums,  // (anchors,)
           T* positive        // (anchors,)
  ) const {
    for_each_pair(in_.count, [&](const BlockPair& pair) {
      DEEPCLUST_SELECT(sum_tile<T>)(in_, pair, in_.rows + pair.row * in_.stride, sums + pair.row, sums + pair.column,
                                    positive, KeptRows<T>());
    });
  }

  // The gradients that are wanted: every pair of blocks adds to the rows of both.
  InputGradients gradients(const AnchorValues<T>& of_anchors, const InputMask& wanted) const {
    const int64_t count = in_.count;
    const bool want_a = wanted[kZA] || wanted[kClassA], want_b = wanted[kZB] || wanted[kClassB];
    const auto is_wanted = [&](int64_t first, int64_t rows) {
      return (want_a && first < count / 2) || (want_b && first + rows > count / 2);
    };
    const at::Tensor gradient = new_gradient<T>(count, in_.stride);
    T* by_anchor = gradient.template mutable_data_ptr<T>();
    for_each_pair(count, [&](BlockPair pair) {
      pair.for_rows = is_wanted(pair.row, pair.rows);
      pair.for_columns = pair.for_columns && is_wanted(pair.column, pair.columns);
      if (pair.for_rows || pair.for_columns) {
        DEEPCLUST_SELECT(add_gradients<T>)(in_, of_anchors, of_anchors, pair, in_.rows + pair.row * in_.stride,
                                           by_anchor + pair.row * in_.stride, by_anchor + pair.column * in_.stride);
      }
    });
    InputGradients result;
    write_gradients(anchors_, by_anchor, 0, kZA, kClassA, wanted, result);
    write_gradients(anchors_, by_anchor, 1, kZB, kClassB, wanted, result);
    return result;
  }

 private:
  PackedRows<T> anchors_;  // of both views
  PackedContrastive<T> in_;
};

}  // namespace
}  // namespace deepclust

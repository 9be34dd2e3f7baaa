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

#include "contrastive/cpu/block_pairs.h"
#include "contrastive/cpu/contrastive_problem.h"
#include "contrastive/cpu/packed_rows.h"
#include "core/cpu/scratch.h"
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
      : anchors_({{z_a, class_a}}, options, Keep::kRowsAndPanels),
        positives_({{z_b, class_b}}, options, Keep::kRows),
        queue_({{queue, class_queue}}, options, Keep::kNorms),
        in_(packed_contrastive(anchors_, queue_, false, options.loss)) {}

  bool is_finite() const {
    const T positive_bound = in_.score_scale * anchors_.largest_norm() * positives_.largest_norm();
    return std::isfinite(in_.bound) && std::isfinite(positive_bound);
  }

  int64_t stride() const { return in_.stride; }

  // The sums over the queue of every anchor, the score of its positive, and what is kept of the queue's rows.
  void sum(LogSums<T>* sums,  // (anchors,)
           T* positive,       // (anchors,)
           const KeptRows<T>& kept /* (anchors, stride) each */) const {
    DEEPCLUST_SELECT(score_pairs<T>)(anchors_.rows(), positives_.rows(), anchors_.count(), anchors_.stride(),
                                     in_.score_scale, positive);
    sum_queue(sums, kept);
  }

  // The derivative of every anchor's loss by its own row, but for the scale of the scores, from what is kept of the
  // queue: slope sum - weight_slope weight_sum + positive_slope positive.
  void write_anchor_gradient(const KeptRows<T>& kept,
                             const T* values,  // (kContrastiveValues, anchors)
                             T* gradient       // (anchors, depth)
  ) const {
    const int64_t count = anchors_.count(), depth = in_.depth, stride = in_.stride;
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
    const int64_t count = anchors_.count(), stride = in_.stride;
    const bool want_a = wanted[kZA] || wanted[kClassA], want_b = wanted[kZB] || wanted[kClassB];
    const bool want_queue = wanted[kQueue] || wanted[kClassQueue];
    InputGradients result;
    const at::Tensor anchor_gradient = new_gradient<T>(count, stride);
    const at::Tensor queue_gradient = new_gradient<T>(want_queue ? queue_.count() : 0, stride);
    T* by_anchor = anchor_gradient.template mutable_data_ptr<T>();
    T* by_queue = queue_gradient.template mutable_data_ptr<T>();
    if (want_a || want_queue) add_queue_gradients(of_anchors, want_queue, want_a, by_queue, by_anchor);
    if (want_queue) write_gradients(queue_, by_queue, 0, kQueue, kClassQueue, wanted, result);
    if (want_a) {
      add_scaled_rows(of_anchors.positive_slope, positives_.rows(), count, stride, by_anchor);
      write_gradients(anchors_, by_anchor, 0, kZA, kClassA, wanted, result);
    }
    if (want_b) {
      const at::Tensor positive_gradient = new_gradient<T>(count, stride);
      T* by_positive = positive_gradient.template mutable_data_ptr<T>();
      add_scaled_rows(of_anchors.positive_slope, anchors_.rows(), count, stride, by_positive);
      write_gradients(positives_, by_positive, 0, kZB, kClassB, wanted, result);
    }
    return result;
  }

 private:
  // Calls use(pair, rows of the pair) for all pairs of blocks of a chunk of the queue.
  template <typename Use>
  void for_each_pair_in(const Chunk& chunk, const Use& use) const {
    const int64_t size = (kTileRows + DEEPCLUST_SELECT(panel_rows<T>)()) * in_.stride;  // the last row panel is full
    Scratch<T> scratch(size);
    T* block = scratch.take(size);
    std::fill(block, block + size, T(0));
    for (int64_t row = chunk.row; row < chunk.row + chunk.rows; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, chunk.row + chunk.rows - row);
      queue_.pack_block(row, rows, block);
      for (int64_t c = 0; c < chunk.columns; c += kTileColumns) {
        use(BlockPair{row, rows, chunk.column + c, std::min(kTileColumns, chunk.columns - c)}, block);
      }
    }
  }

  // Adds the exponentials of all scores of the queue to the sums of the anchors, and to what is kept of its rows.
  void sum_queue(LogSums<T>* sums,        // (anchors,)
                 const KeptRows<T>& kept  // (anchors, stride)
  ) const {
    const int64_t group = std::min(anchors_.count(), kGroupColumns);
    const int64_t chunks = count_chunks(in_.count);
    const int64_t stride = in_.stride;
    const int64_t size = kept.sum == nullptr ? 0 : group * stride, weight_size = kept.weight_sum == nullptr ? 0 : size;
    std::vector<LogSums<T>> by_chunk(chunks * group);  // (chunks, columns of a group)
    Scratch<T> scratch(chunks * (size + weight_size));
    T* memory = scratch.take(chunks * (size + weight_size));
    const auto kept_of = [&](int64_t index, int64_t column) {  // of a chunk, from a column of the group on
      T* own = memory + index * (size + weight_size);
      return KeptRows<T>{size > 0 ? own + column * stride : nullptr,
                         weight_size > 0 ? own + size + column * stride : nullptr};
    };
    const auto task = [&](const Chunk& chunk) {
      LogSums<T>* own = by_chunk.data() + chunk.index * group;
      std::fill(own, own + group, LogSums<T>());  // of the group before
      std::fill(memory + chunk.index * (size + weight_size), memory + (chunk.index + 1) * (size + weight_size), T(0));
      for_each_pair_in(chunk, [&](BlockPair pair, const T* rows) {
        pair.for_rows = false;
        const int64_t column = pair.column - chunk.column;
        DEEPCLUST_SELECT(sum_tile<T>)(in_, pair, rows, nullptr, own + column, nullptr, kept_of(chunk.index, column));
      });
    };
    for_each_chunk(in_.count, anchors_.count(), task, [&](int64_t column, int64_t columns) {
      at::parallel_for(0, columns, 16, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          for (int64_t i = 0; i < chunks; ++i) {
            DEEPCLUST_SELECT(add_sums<T>)(in_, by_chunk[i * group + c], kept_of(i, 0), c, sums[column + c], kept,
                                          column + c);
          }
        }
      });
    });
  }

  // Adds what the scores of the queue give to the gradients of the packed rows of the queue, if wanted, and of the
  // anchors.
  void add_queue_gradients(const AnchorValues<T>& of_anchors, bool want_queue, bool want_a,
                           T* by_queue,  // (count, stride)
                           T* by_anchor  // (anchors, stride)
  ) const {
    const int64_t anchors = anchors_.count();
    const int64_t group = std::min(anchors, kGroupColumns) * in_.stride;
    const int64_t chunks = count_chunks(in_.count);
    Scratch<T> scratch(chunks * group);
    T* by_chunk = scratch.take(chunks * group);  // (chunks, columns of a group, stride)
    const auto task = [&](const Chunk& chunk) {
      T* own = by_chunk + chunk.index * group;
      std::fill(own, own + group, T(0));
      for_each_pair_in(chunk, [&](BlockPair pair, const T* rows) {
        pair.for_rows = want_queue;
        pair.for_columns = want_a;
        DEEPCLUST_SELECT(add_gradients<T>)(in_, of_anchors, pair, rows, by_queue + pair.row * in_.stride,
                                           own + (pair.column - chunk.column) * in_.stride);
      });
    };
    for_each_chunk(in_.count, anchors, task, [&](int64_t column, int64_t columns) {
      at::parallel_for(column * in_.stride, (column + columns) * in_.stride, 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = 0; i < chunks; ++i) {
          const T* from = by_chunk + i * group - column * in_.stride;
          for (int64_t k = begin; k < end; ++k) by_anchor[k] += from[k];
        }
      });
    });
  }

  PackedRows<T> anchors_, positives_, queue_;
  PackedContrastive<T> in_;
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

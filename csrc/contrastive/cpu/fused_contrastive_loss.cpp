// The contrastive loss without any N x N matrix, and with every product of two rows computed once.
//
// A row is packed as [z / |z|, c sqrt(temperature / class_temperature)]: scores are products of such rows over the
// temperature, class vectors no more than further features. (CUDA packs [z / |z| / sqrt(temperature), c /
// sqrt(class_temperature)], whose products are scores: see contrastive/cuda/fused_contrastive_loss.cuh.) Rows are cut
// into blocks. A task computes the scores of one block against another, by the tile core, and uses them while they are
// in cache: the forward pass sums their exponentials, the backward pass turns them into derivatives and multiplies
// these with the rows. Scores of two views are symmetric, so a task serves the rows of both its blocks.
//
// Tasks run in rounds of disjoint pairs (block_pairs.h), so that sums of a block need no locks and have one order. A
// queue, which may be large, is never packed as a whole: a task packs one block of it after the other, compares it with
// all anchors while it is in cache, and has sums of its own for these, which are added up in one order too.
// Where no gradient of the queue will be asked for, the forward pass multiplies the exponentials with the rows as well,
// which gives the gradients of the anchors; the backward pass then reads no queue.
//
// Where no score is so large that exponentials could vanish, all of them are taken relative to one bound of the scores;
// one exponential then serves both anchors of a pair. Otherwise every anchor has its own running maximum.
//
// Where anchors have further negatives, the overloads log_sums find sums of exponentials and, of any rows that are
// anchors, their gradients: of two views, or of the pairs between these and other anchors.
//
// Two views stand in contrastive_views.h, the queue in contrastive_queue.h, pairs between two sets of anchors in
// contrastive_between.h. What these share is in contrastive_problem.h and streamed_rows.h.
//
// Cost for the N = 2B rows of two views: N^2 D / 2 multiply-adds forward and 3 N^2 D / 2 backward, each with an
// exponential for every unordered pair; O(N D) memory.
#include "contrastive/fused_contrastive_loss.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "contrastive/contrastive_row.h"
#include "contrastive/cpu/block_pairs.h"
#include "core/constants.h"
#include "core/cpu/scratch.h"
#include "core/dtypes.h"

namespace deepclust {
namespace {

// What the kernels read; T is the accumulation type. Rows are packed.
template <typename T>
struct PackedContrastive {
  bool two_views;          // rows and columns are the same; else rows are others. Columns are anchors.
  int64_t count;           // rows
  int64_t depth, stride;   // elements of a row, and from one row to the next
  const T* rows;           // (count, stride), null if they are not packed as a whole
  const T* column_rows;    // (columns, stride)
  const T* column_panels;  // (columns padded, depth)
  const T* column_bias;    // (columns padded,) 0, -inf where absent
  T score_scale;           // 1 / temperature, by which products become scores
  T hardness;              // 0 stays 0, but nothing else becomes 0: scores may be -inf
  T bound;                 // of the absolute value of all scores
  bool bounded;            // exponentials are relative to the bound
};

// Sums of exponentials of an anchor, relative to `shift`.
template <typename T>
struct LogSums {
  T shift = -std::numeric_limits<T>::infinity();
  double sum = 0, weight_sum = 0;
};

// Sums over the rows that anchors are compared with of these rows times their exponentials, relative to the shifts of
// the anchors, (anchors, stride) each; null where they are not kept.
template <typename T>
struct KeptRows {
  T* sum = nullptr;
  T* weight_sum = nullptr;  // for hardness above 0
};

// The values of all anchors, (anchors,) each, slopes times the gradient of the anchor's loss. Rows that are no anchors
// have none.
template <typename T>
struct AnchorValues {
  const T* positive_slope = nullptr;
  const T* slope = nullptr;
  const T* weight_slope = nullptr;
  const T* shift = nullptr;
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "contrastive/cpu/fused_contrastive_loss.inl"
#include "core/cpu/foreach_capability.h"

#include "contrastive/cpu/contrastive_between.h"
#include "contrastive/cpu/contrastive_queue.h"
#include "contrastive/cpu/contrastive_views.h"

namespace deepclust {
namespace {

template <typename T>
FusedContrastiveLossOutputs loss_of(const at::Tensor& z_a, const at::Tensor& z_b, const OptionalTensor& class_a,
                                    const OptionalTensor& class_b, const OptionalTensor& queue,
                                    const OptionalTensor& class_queue, const Options& options,
                                    std::string_view reduction, bool keep_gradient) {
  const at::TensorOptions accumulation = z_a.options().dtype(c10::CppTypeToScalarType<T>::value);
  const int64_t count = z_a.size(0) * (queue ? 1 : 2);
  const bool is_sum = reduction != "none";
  at::Tensor loss = at::empty({count}, accumulation);
  const at::Tensor row_values = at::empty({kContrastiveValues, count}, accumulation);
  const bool keeps = keep_gradient && queue;
  const int64_t depth = z_a.size(1) + (class_a ? class_a->size(1) : 0);
  const at::Tensor anchor_gradient = keeps ? at::empty({count, depth}, accumulation) : at::empty({0}, accumulation);
  T* losses = loss.template mutable_data_ptr<T>();
  T* values = row_values.template mutable_data_ptr<T>();
  std::vector<LogSums<T>> sums(count);
  std::vector<T> positive(count);
  const auto run_views = [&] {  // false where an input is not finite
    const TwoViews<T> problem(z_a, z_b, class_a, class_b, options);
    if (!problem.is_finite()) return false;
    problem.sum(sums.data(), positive.data());
    write_losses(positive, sums, options, losses, values);
    return true;
  };
  const auto run_queue = [&] {
    const WithQueue<T> problem(z_a, z_b, class_a, class_b, *queue, class_queue, options);
    if (!problem.is_finite()) return false;
    const int64_t kept_size = keeps ? count * problem.stride() : 0;
    const bool keeps_weights = keeps && options.loss.hardness > 0;
    std::vector<T> kept_rows((1 + keeps_weights) * kept_size);
    const KeptRows<T> kept{keeps ? kept_rows.data() : nullptr, keeps_weights ? kept_rows.data() + kept_size : nullptr};
    problem.sum(sums.data(), positive.data(), kept);
    write_losses(positive, sums, options, losses, values);
    if (keeps) problem.write_anchor_gradient(kept, values, anchor_gradient.template mutable_data_ptr<T>());
    return true;
  };
  if (count > 0 && !(queue ? run_queue() : run_views())) {
    loss.fill_(std::numeric_limits<double>::quiet_NaN());
    row_values.fill_(std::numeric_limits<double>::quiet_NaN());
    anchor_gradient.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  if (is_sum) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += losses[i];
    loss = at::empty({}, accumulation);
    *loss.template mutable_data_ptr<T>() =
        static_cast<T>(reduction == "mean" ? total / std::max<double>(count, 1) : total);
  }
  return {to_dtype(loss, z_a.scalar_type()), row_values, anchor_gradient};
}

FusedContrastiveLossOutputs fused_contrastive_loss_cpu(const at::Tensor& z_a,  // (B, D)
                                                       const at::Tensor& z_b,  // (B, D)
                                                       double temperature, double hardness, double debias,
                                                       const OptionalTensor& class_a,  // (B, K)
                                                       const OptionalTensor& class_b,  // (B, K)
                                                       double class_temperature,
                                                       const OptionalTensor& queue,        // (M, D)
                                                       const OptionalTensor& class_queue,  // (M, K)
                                                       bool normalize, std::string_view reduction, bool keep_gradient) {
  check_fused_contrastive_loss(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature, queue,
                               class_queue, reduction);
  const int64_t negatives = queue ? queue->size(0) : std::max<int64_t>(2 * z_a.size(0) - 2, 0);
  const Options options{{temperature, hardness, debias, class_temperature, negatives}, normalize};
  const auto run = z_a.scalar_type() == at::kDouble ? loss_of<double> : loss_of<float>;
  return run(z_a, z_b, class_a, class_b, queue, class_queue, options, reduction, keep_gradient);
}

template <typename T>
at::Tensor log_sums_of(const at::Tensor& z_a, const at::Tensor& z_b, const OptionalTensor& class_a,
                       const OptionalTensor& class_b, const OptionalTensor& queue, const OptionalTensor& class_queue,
                       const Options& options) {
  const int64_t count = 2 * z_a.size(0) + (queue ? queue->size(0) : 0);
  const at::Tensor values = at::empty({3, count}, z_a.options().dtype(at::kDouble));
  const auto run = [&](const auto& problem) {
    if (!problem.is_finite()) {
      values.fill_(std::numeric_limits<double>::quiet_NaN());
      return;
    }
    std::vector<LogSums<T>> sums(count);
    std::vector<T> positive(count);
    problem.sum(sums.data(), positive.data());
    write_log_sums(positive, sums, options.loss.hardness, values.template mutable_data_ptr<double>());
  };
  if (count == 0) return values;
  if (queue) {
    run(Between<T>(z_a, z_b, class_a, class_b, *queue, class_queue, options));
  } else {
    run(TwoViews<T>(z_a, z_b, class_a, class_b, options));
  }
  return values;
}

at::Tensor fused_contrastive_loss_log_sums_cpu(const at::Tensor& z_a,  // (B, D)
                                               const at::Tensor& z_b,  // (B, D)
                                               double temperature, double hardness,
                                               const OptionalTensor& class_a,  // (B, K)
                                               const OptionalTensor& class_b,  // (B, K)
                                               double class_temperature,
                                               const OptionalTensor& queue,        // (M, D)
                                               const OptionalTensor& class_queue,  // (M, K)
                                               bool normalize) {
  check_fused_contrastive_loss(z_a, z_b, temperature, hardness, 0, class_a, class_b, class_temperature, queue,
                               class_queue, "none");
  const Options options{{temperature, hardness, 0, class_temperature, 0}, normalize};
  const auto run = z_a.scalar_type() == at::kDouble ? log_sums_of<double> : log_sums_of<float>;
  return run(z_a, z_b, class_a, class_b, queue, class_queue, options);
}

template <typename T>
InputGradients gradients_of(const at::Tensor& grad_loss, const at::Tensor& z_a, const at::Tensor& z_b,
                            const at::Tensor& row_values, const OptionalTensor& class_a, const OptionalTensor& class_b,
                            const OptionalTensor& queue, const OptionalTensor& class_queue, const Options& options,
                            std::string_view reduction, const InputMask& wanted) {
  const at::Tensor slopes = slopes_of<T>(1 / options.loss.temperature, grad_loss, row_values, reduction);
  const AnchorValues<T> of_anchors = anchor_values<T>(slopes, row_values);
  if (!queue) return TwoViews<T>(z_a, z_b, class_a, class_b, options).gradients(of_anchors, wanted);
  return WithQueue<T>(z_a, z_b, class_a, class_b, *queue, class_queue, options).gradients(of_anchors, wanted);
}

template <typename T>
InputGradients gradients_of_log_sums(const at::Tensor& row_values, const at::Tensor& z_a, const at::Tensor& z_b,
                                     const OptionalTensor& class_a, const OptionalTensor& class_b,
                                     const OptionalTensor& queue, const OptionalTensor& class_queue,
                                     const Options& options, const InputMask& wanted) {
  const auto run = [&](const auto& problem) {
    const at::Tensor slopes = slopes_of_log_sums<T>(problem.packed(), row_values);
    return problem.gradients(anchor_values<T>(slopes, row_values), wanted);
  };
  if (queue) return run(Between<T>(z_a, z_b, class_a, class_b, *queue, class_queue, options));
  return run(TwoViews<T>(z_a, z_b, class_a, class_b, options));
}

// Whether every input of the forward pass was finite, and there is an anchor.
bool are_finite(const at::Tensor& row_values  // (kContrastiveValues, anchors)
) {
  if (row_values.size(1) == 0) return false;
  return row_values.scalar_type() == at::kDouble ? std::isfinite(*row_values.const_data_ptr<double>())
                                                 : std::isfinite(*row_values.const_data_ptr<float>());
}

// Gradients in a dtype, those of no anchor or of inputs that are not finite too; empty where not wanted.
FusedContrastiveLossGradients all_gradients(InputGradients gradients, const at::Tensor& row_values,
                                            const std::array<OptionalTensor, kInputs>& inputs, const InputMask& wanted,
                                            at::ScalarType dtype) {
  const at::TensorOptions options = row_values.options().dtype(dtype);
  const double absent = row_values.size(1) > 0 ? std::numeric_limits<double>::quiet_NaN() : 0.0;
  for (size_t i = 0; i < kInputs; ++i) {
    if (!wanted[i]) {
      gradients[i] = at::empty({0}, options);
    } else if (!gradients[i].defined()) {
      gradients[i] = at::full(inputs[i]->sizes(), absent, options);
    }
    gradients[i] = to_dtype(gradients[i], dtype);
  }
  return {gradients[kZA],     gradients[kZB],    gradients[kClassA],
          gradients[kClassB], gradients[kQueue], gradients[kClassQueue]};
}

FusedContrastiveLossGradients fused_contrastive_loss_backward_cpu(
    const at::Tensor& grad_loss,        // () or (anchors,)
    const at::Tensor& z_a,              // (B, D)
    const at::Tensor& z_b,              // (B, D)
    const at::Tensor& row_values,       // (kContrastiveValues, anchors)
    const at::Tensor& anchor_gradient,  // (anchors, D + K) or empty
    double temperature, double hardness,
    const OptionalTensor& class_a,  // (B, K)
    const OptionalTensor& class_b,  // (B, K)
    double class_temperature,
    const OptionalTensor& queue,        // (M, D)
    const OptionalTensor& class_queue,  // (M, K)
    bool normalize, std::string_view reduction, InputMask output_mask) {
  const Options options{{temperature, hardness, 0, class_temperature, 0}, normalize};
  InputGradients gradients;
  const bool is_double = z_a.scalar_type() == at::kDouble;
  const bool finite = are_finite(row_values);
  const bool want_queue = output_mask[kQueue] || output_mask[kClassQueue];
  if (finite && anchor_gradient.dim() == 2 && !want_queue) {
    const auto run = is_double ? gradients_of_kept<double> : gradients_of_kept<float>;
    gradients =
        run(grad_loss, z_a, z_b, row_values, anchor_gradient, class_a, class_b, options, reduction, output_mask);
  } else if (finite) {
    const auto run = is_double ? gradients_of<double> : gradients_of<float>;
    gradients =
        run(grad_loss, z_a, z_b, row_values, class_a, class_b, queue, class_queue, options, reduction, output_mask);
  }
  return all_gradients(std::move(gradients), row_values, {z_a, z_b, class_a, class_b, queue, class_queue}, output_mask,
                       z_a.scalar_type());
}

FusedContrastiveLossGradients fused_contrastive_loss_backward_log_sums_cpu(
    const at::Tensor& row_values,  // (kContrastiveValues, anchors)
    const at::Tensor& z_a,         // (B, D)
    const at::Tensor& z_b,         // (B, D)
    double temperature, double hardness,
    const OptionalTensor& class_a,  // (B, K)
    const OptionalTensor& class_b,  // (B, K)
    double class_temperature,
    const OptionalTensor& queue,        // (M, D)
    const OptionalTensor& class_queue,  // (M, K)
    bool normalize, InputMask output_mask) {
  const Options options{{temperature, hardness, 0, class_temperature, 0}, normalize};
  InputGradients gradients;
  if (are_finite(row_values)) {
    const auto run = z_a.scalar_type() == at::kDouble ? gradients_of_log_sums<double> : gradients_of_log_sums<float>;
    gradients = run(row_values, z_a, z_b, class_a, class_b, queue, class_queue, options, output_mask);
  }
  return all_gradients(std::move(gradients), row_values, {z_a, z_b, class_a, class_b, queue, class_queue}, output_mask,
                       row_values.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("fused_contrastive_loss", fused_contrastive_loss_cpu);
  m.impl("fused_contrastive_loss.log_sums", fused_contrastive_loss_log_sums_cpu);
  m.impl("fused_contrastive_loss_backward", fused_contrastive_loss_backward_cpu);
  m.impl("fused_contrastive_loss_backward.log_sums", fused_contrastive_loss_backward_log_sums_cpu);
}

}  // namespace deepclust

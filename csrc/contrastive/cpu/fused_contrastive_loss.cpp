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

// Between the least and the largest exponent: sums of exponentials down to exp(-64), and their inverses times a
// gradient, are still normal floats, so that no maximum is searched.
constexpr double kMaxUnshiftedSpan = 64;

// What the kernels read; T is the accumulation type. Rows are packed.
template <typename T>
struct PackedContrastive {
  bool two_views;          // rows and columns are the same; else rows are the queue. Columns are the anchors.
  int64_t count;           // rows
  int64_t depth, stride;   // elements of a row, and from one row to the next
  const T* rows;           // (count, stride), null for a queue
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

// The values of all anchors, (anchors,) each, slopes times the gradient of the anchor's loss.
template <typename T>
struct AnchorValues {
  const T* positive_slope;
  const T* slope;
  const T* weight_slope;
  const T* shift;
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "contrastive/cpu/fused_contrastive_loss.inl"
#include "core/cpu/foreach_capability.h"

#include "contrastive/cpu/packed_rows.h"

namespace deepclust {
namespace {

// What both passes start from.
template <typename T>
struct Problem {
  bool two_views;
  PackedRows<T> anchors;                   // of both views, or of the anchors alone
  std::optional<PackedRows<T>> positives;  // with a queue
  std::optional<PackedRows<T>> queue;
  bool finite;
  PackedContrastive<T> in;

  Problem(const at::Tensor& z_a, const at::Tensor& z_b, const OptionalTensor& class_a, const OptionalTensor& class_b,
          const OptionalTensor& queue_z, const OptionalTensor& class_queue, const Options& options)
      : two_views(!queue_z),
        anchors(anchor_sources(z_a, z_b, class_a, class_b, two_views), options, Keep::kRowsAndPanels) {
    const T scale = 1 / options.loss.temperature;
    if (!two_views) {
      positives.emplace(std::vector<Source>{{z_b, class_b}}, options, Keep::kRows);
      queue.emplace(std::vector<Source>{{*queue_z, class_queue}}, options, Keep::kNorms);
    }
    const PackedRows<T>& rows = two_views ? anchors : *queue;
    const T bound = scale * anchors.largest_norm() * rows.largest_norm();
    const T positive_bound = two_views ? bound : scale * anchors.largest_norm() * positives->largest_norm();
    finite = std::isfinite(bound) && std::isfinite(positive_bound);
    in = {.two_views = two_views,
          .count = rows.count(),
          .depth = rows.depth(),
          .stride = rows.stride(),
          .rows = rows.rows(),
          .column_rows = anchors.rows(),
          .column_panels = anchors.panels(),
          .column_bias = anchors.bias(),
          .score_scale = scale,
          .hardness = hardness_of(options.loss.hardness),
          .bound = bound,
          .bounded = 2 * (1 + options.loss.hardness) * bound <= kMaxUnshiftedSpan};
  }

  // Calls use(pair, rows of the pair) for all pairs of blocks of a chunk of the queue.
  template <typename Use>
  void for_each_pair_in(const Chunk& chunk, const Use& use) const {
    const int64_t size = (kTileRows + DEEPCLUST_SELECT(panel_rows<T>)()) * in.stride;  // the last row panel is full
    Scratch<T> scratch(size);
    T* block = scratch.take(size);
    std::fill(block, block + size, T(0));
    for (int64_t row = chunk.row; row < chunk.row + chunk.rows; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, chunk.row + chunk.rows - row);
      queue->pack_block(row, rows, block);
      for (int64_t c = 0; c < chunk.columns; c += kTileColumns) {
        use(BlockPair{row, rows, chunk.column + c, std::min(kTileColumns, chunk.columns - c)}, block);
      }
    }
  }

 private:
  static T hardness_of(double hardness) {
    return hardness > 0 ? std::max(static_cast<T>(hardness), std::numeric_limits<T>::min()) : T(0);
  }

  static std::vector<Source> anchor_sources(const at::Tensor& z_a, const at::Tensor& z_b, const OptionalTensor& class_a,
                                            const OptionalTensor& class_b, bool two_views) {
    if (two_views) return {{z_a, class_a}, {z_b, class_b}};
    return {{z_a, class_a}};
  }
};

// Adds the exponentials of all scores of the queue to the sums of the anchors, and to what is kept of its rows.
template <typename T>
void sum_queue(const Problem<T>& problem,
               LogSums<T>* sums,        // (anchors,)
               const KeptRows<T>& kept  // (anchors, stride)
) {
  const int64_t group = std::min(problem.anchors.count(), kGroupColumns);
  const int64_t chunks = count_chunks(problem.in.count);
  const int64_t stride = problem.in.stride;
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
    problem.for_each_pair_in(chunk, [&](BlockPair pair, const T* rows) {
      pair.for_rows = false;
      const int64_t column = pair.column - chunk.column;
      DEEPCLUST_SELECT(sum_tile<T>)(problem.in, pair, rows, nullptr, own + column, nullptr,
                                    kept_of(chunk.index, column));
    });
  };
  for_each_chunk(problem.in.count, problem.anchors.count(), task, [&](int64_t column, int64_t columns) {
    at::parallel_for(0, columns, 16, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t i = 0; i < chunks; ++i) {
          DEEPCLUST_SELECT(add_sums<T>)(problem.in, by_chunk[i * group + c], kept_of(i, 0), c, sums[column + c], kept,
                                        column + c);
        }
      }
    });
  });
}

// The derivative of every anchor's loss by its own row, but for the scale of the scores, from what is kept of the
// queue: slope sum - weight_slope weight_sum + positive_slope positive.
template <typename T>
void write_anchor_gradient(const Problem<T>& problem, const KeptRows<T>& kept,
                           const T* values,  // (kContrastiveValues, anchors)
                           T* gradient       // (anchors, depth)
) {
  const int64_t count = problem.anchors.count(), depth = problem.in.depth, stride = problem.in.stride;
  for (int64_t i = 0; i < count; ++i) {
    const T* positive = problem.positives->rows() + i * stride;
    for (int64_t k = 0; k < depth; ++k) {
      T sum = values[kPositiveSlope * count + i] * positive[k] + values[kSlope * count + i] * kept.sum[i * stride + k];
      if (kept.weight_sum != nullptr) sum -= values[kWeightSlope * count + i] * kept.weight_sum[i * stride + k];
      gradient[i * depth + k] = sum;
    }
  }
}

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
  if (count > 0) {
    const Problem<T> problem(z_a, z_b, class_a, class_b, queue, class_queue, options);
    if (problem.finite) {
      std::vector<LogSums<T>> sums(count);
      std::vector<T> positive(count);
      const int64_t kept_size = keeps ? count * problem.in.stride : 0;
      const bool keeps_weights = keeps && options.loss.hardness > 0;
      std::vector<T> kept_rows((1 + keeps_weights) * kept_size);
      const KeptRows<T> kept{keeps ? kept_rows.data() : nullptr,
                             keeps_weights ? kept_rows.data() + kept_size : nullptr};
      if (!problem.two_views) {
        DEEPCLUST_SELECT(score_pairs<T>)(problem.anchors.rows(), problem.positives->rows(), count,
                                         problem.anchors.stride(), problem.in.score_scale, positive.data());
      }
      if (problem.two_views) {
        for_each_pair(count, [&](const BlockPair& pair) {
          DEEPCLUST_SELECT(sum_tile<T>)(problem.in, pair, problem.in.rows + pair.row * problem.in.stride,
                                        sums.data() + pair.row, sums.data() + pair.column, positive.data(),
                                        KeptRows<T>());
        });
      } else {
        sum_queue(problem, sums.data(), kept);
      }
      at::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const ContrastiveRow row =
              contrastive_row(positive[i], {sums[i].shift, sums[i].sum, sums[i].weight_sum}, options.loss);
          losses[i] = static_cast<T>(row.loss);
          values[kPositiveSlope * count + i] = static_cast<T>(row.positive_slope);
          values[kSlope * count + i] = static_cast<T>(row.slope);
          values[kWeightSlope * count + i] = static_cast<T>(row.weight_slope);
          values[kShift * count + i] = options.loss.negatives > 0 ? sums[i].shift : T(0);
        }
      });
      if (keeps) write_anchor_gradient(problem, kept, values, anchor_gradient.template mutable_data_ptr<T>());
    } else {
      loss.fill_(std::numeric_limits<double>::quiet_NaN());
      row_values.fill_(std::numeric_limits<double>::quiet_NaN());
      anchor_gradient.fill_(std::numeric_limits<double>::quiet_NaN());
    }
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

enum Input { kZA, kZB, kClassA, kClassB, kQueue, kClassQueue, kInputs };
using InputMask = std::array<bool, kInputs>;

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

// to_i += slope_i from_i
template <typename T>
void add_scaled_rows(const T* slope, const T* from, int64_t count, int64_t stride, T* to) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < stride; ++k) to[i * stride + k] += slope[i] * from[i * stride + k];
  }
}

// Adds what the scores of the queue give to the gradients of the packed rows of the queue, if wanted, and of the
// anchors.
template <typename T>
void add_queue_gradients(const Problem<T>& problem, const AnchorValues<T>& of_anchors, bool want_queue, bool want_a,
                         T* by_queue,  // (count, stride)
                         T* by_anchor  // (anchors, stride)
) {
  const PackedContrastive<T>& in = problem.in;
  const int64_t anchors = problem.anchors.count();
  const int64_t group = std::min(anchors, kGroupColumns) * in.stride;
  const int64_t chunks = count_chunks(in.count);
  Scratch<T> scratch(chunks * group);
  T* by_chunk = scratch.take(chunks * group);  // (chunks, columns of a group, stride)
  const auto task = [&](const Chunk& chunk) {
    T* own = by_chunk + chunk.index * group;
    std::fill(own, own + group, T(0));
    problem.for_each_pair_in(chunk, [&](BlockPair pair, const T* rows) {
      pair.for_rows = want_queue;
      pair.for_columns = want_a;
      DEEPCLUST_SELECT(add_gradients<T>)(in, of_anchors, pair, rows, by_queue + pair.row * in.stride,
                                         own + (pair.column - chunk.column) * in.stride);
    });
  };
  for_each_chunk(in.count, anchors, task, [&](int64_t column, int64_t columns) {
    at::parallel_for(column * in.stride, (column + columns) * in.stride, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < chunks; ++i) {
        const T* from = by_chunk + i * group - column * in.stride;
        for (int64_t k = begin; k < end; ++k) by_anchor[k] += from[k];
      }
    });
  });
}

// Gradients where the forward pass has kept those of the anchors: no row of the queue is read again.
template <typename T>
std::array<at::Tensor, kInputs> gradients_of_kept(const at::Tensor& grad_loss, const at::Tensor& z_a,
                                                  const at::Tensor& z_b, const at::Tensor& row_values,
                                                  const at::Tensor& anchor_gradient, const OptionalTensor& class_a,
                                                  const OptionalTensor& class_b, const Options& options,
                                                  std::string_view reduction, const InputMask& wanted) {
  const int64_t count = anchor_gradient.size(0), depth = anchor_gradient.size(1);
  const bool want_b = wanted[kZB] || wanted[kClassB];
  const PackedRows<T> anchors({{z_a, class_a}}, options, want_b ? Keep::kRows : Keep::kNorms);
  const at::Tensor slopes = slopes_of<T>(1 / options.loss.temperature, grad_loss, row_values, reduction);
  std::array<at::Tensor, kInputs> gradients;
  const auto write = [&](const PackedRows<T>& rows, const T* gradient, Input z, Input classes) {
    if (wanted[z]) gradients[z] = rows.feature_gradient(gradient, 0);
    if (wanted[classes]) gradients[classes] = rows.class_gradient(gradient, 0);
  };
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
    write(anchors, gradient.data(), kZA, kClassA);
  }
  if (want_b) {
    const PackedRows<T> positives({{z_b, class_b}}, options, Keep::kNorms);
    std::fill(gradient.begin(), gradient.end(), T(0));
    const T* positive_slope = slopes.template const_data_ptr<T>() + kPositiveSlope * count;
    add_scaled_rows(positive_slope, anchors.rows(), count, anchors.stride(), gradient.data());
    write(positives, gradient.data(), kZB, kClassB);
  }
  return gradients;
}

template <typename T>
std::array<at::Tensor, kInputs> gradients_of(const at::Tensor& grad_loss, const at::Tensor& z_a, const at::Tensor& z_b,
                                             const at::Tensor& row_values, const OptionalTensor& class_a,
                                             const OptionalTensor& class_b, const OptionalTensor& queue,
                                             const OptionalTensor& class_queue, const Options& options,
                                             std::string_view reduction, const InputMask& wanted) {
  const Problem<T> problem(z_a, z_b, class_a, class_b, queue, class_queue, options);
  const PackedContrastive<T>& in = problem.in;
  const int64_t count = row_values.size(1);
  const at::Tensor slopes = slopes_of<T>(in.score_scale, grad_loss, row_values, reduction);
  const T* slope = slopes.template const_data_ptr<T>();
  const AnchorValues<T> of_anchors{slope + kPositiveSlope * count, slope + kSlope * count, slope + kWeightSlope * count,
                                   row_values.template const_data_ptr<T>() + kShift * count};
  const auto new_gradient = [&](int64_t rows) { return at::zeros({rows, in.stride}, row_values.options()); };
  const bool want_a = wanted[kZA] || wanted[kClassA], want_b = wanted[kZB] || wanted[kClassB];
  const bool want_queue = wanted[kQueue] || wanted[kClassQueue];

  std::array<at::Tensor, kInputs> gradients;
  const auto write = [&](const PackedRows<T>& rows, const at::Tensor& gradient, size_t which, Input z, Input classes) {
    const T* from = gradient.template const_data_ptr<T>();
    if (wanted[z]) gradients[z] = rows.feature_gradient(from, which);
    if (wanted[classes]) gradients[classes] = rows.class_gradient(from, which);
  };
  const at::Tensor anchor_gradient = new_gradient(count);
  T* by_anchor = anchor_gradient.template mutable_data_ptr<T>();
  if (problem.two_views) {
    const auto is_wanted = [&](int64_t first, int64_t rows) {
      return (want_a && first < count / 2) || (want_b && first + rows > count / 2);
    };
    for_each_pair(count, [&](BlockPair pair) {
      pair.for_rows = is_wanted(pair.row, pair.rows);
      pair.for_columns = pair.for_columns && is_wanted(pair.column, pair.columns);
      if (pair.for_rows || pair.for_columns) {
        DEEPCLUST_SELECT(add_gradients<T>)(in, of_anchors, pair, in.rows + pair.row * in.stride,
                                           by_anchor + pair.row * in.stride, by_anchor + pair.column * in.stride);
      }
    });
    write(problem.anchors, anchor_gradient, 0, kZA, kClassA);
    write(problem.anchors, anchor_gradient, 1, kZB, kClassB);
    return gradients;
  }
  const at::Tensor queue_gradient = new_gradient(want_queue ? problem.queue->count() : 0);
  T* by_queue = queue_gradient.template mutable_data_ptr<T>();
  if (want_a || want_queue) add_queue_gradients(problem, of_anchors, want_queue, want_a, by_queue, by_anchor);
  if (want_queue) write(*problem.queue, queue_gradient, 0, kQueue, kClassQueue);
  if (want_a) {
    add_scaled_rows(of_anchors.positive_slope, problem.positives->rows(), count, in.stride, by_anchor);
    write(problem.anchors, anchor_gradient, 0, kZA, kClassA);
  }
  if (want_b) {
    const at::Tensor positive_gradient = new_gradient(count);
    add_scaled_rows(of_anchors.positive_slope, problem.anchors.rows(), count, in.stride,
                    positive_gradient.template mutable_data_ptr<T>());
    write(*problem.positives, positive_gradient, 0, kZB, kClassB);
  }
  return gradients;
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
  std::array<at::Tensor, kInputs> gradients;
  const bool is_double = z_a.scalar_type() == at::kDouble;
  const bool some = row_values.size(1) > 0;
  const bool finite = some && (is_double ? std::isfinite(*row_values.const_data_ptr<double>())
                                         : std::isfinite(*row_values.const_data_ptr<float>()));
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
  const std::array<OptionalTensor, kInputs> inputs{z_a, z_b, class_a, class_b, queue, class_queue};
  for (size_t i = 0; i < kInputs; ++i) {
    if (!output_mask[i]) {
      gradients[i] = at::empty({0}, z_a.options());
    } else if (!finite) {
      gradients[i] = at::full(inputs[i]->sizes(), some ? std::numeric_limits<double>::quiet_NaN() : 0.0, z_a.options());
    }
    gradients[i] = to_dtype(gradients[i], z_a.scalar_type());
  }
  return {gradients[kZA],     gradients[kZB],    gradients[kClassA],
          gradients[kClassB], gradients[kQueue], gradients[kClassQueue]};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("fused_contrastive_loss", fused_contrastive_loss_cpu);
  m.impl("fused_contrastive_loss_backward", fused_contrastive_loss_backward_cpu);
}

}  // namespace deepclust

// The contrastive loss without any N x N matrix, and with every product of two rows computed once.
//
// A row is packed as [z / |z|, c sqrt(temperature / class_temperature)]: scores are products of such rows over the
// temperature, class vectors no more than further features. Rows are cut into blocks. A task computes the scores of one
// block against another, by the tile core, and uses them while they are in cache: the forward pass sums their
// exponentials, the backward pass turns them into derivatives and multiplies these with the rows. Scores of two views
// are symmetric, so a task serves the rows of both its blocks.
//
// Tasks run in rounds of disjoint pairs (block_pairs.h), so that sums of a block need no locks and have one order.
//
// Where no score is so large that exponentials could vanish, all of them are taken relative to one bound of the scores;
// one exponential then serves both anchors of a pair. Otherwise every anchor has its own running maximum.
//
// Cost for the N = 2B rows of two views: N^2 D / 2 multiply-adds forward and 3 N^2 D / 2 backward, each with an
// exponential for every unordered pair; O(N D) memory.
#include "ops/fused_contrastive_loss.h"

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

#include "common/constants.h"
#include "common/contrastive_row.h"
#include "common/dtypes.h"
#include "cpu/block_pairs.h"
#include "cpu/scratch.h"

namespace deepclust {
namespace {

// Sums of exponentials down to exp(-64), and their inverses times a gradient, are still normal floats.
constexpr double kMaxBoundedExponent = 64;

// What the kernels read; T is the accumulation type. Rows are packed.
template <typename T>
struct ContrastiveInputs {
  bool two_views;          // rows and columns are the same; else rows are the queue. Columns are the anchors.
  int64_t count;           // rows
  int64_t depth, stride;   // elements of a row, and from one row to the next
  const T* rows;           // (count, stride)
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

#define DEEPCLUST_KERNEL_FILE "cpu/fused_contrastive_loss.inl"
#include "common/foreach_capability.h"

namespace deepclust {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

struct Options {
  ContrastiveOptions loss;
  bool normalize;
};

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// One input: features (B, D) and class vectors (B, K), if there are any.
struct Source {
  at::Tensor z, classes;

  Source(const at::Tensor& features, const OptionalTensor& class_vectors)
      : z(to_accumulation(features)), classes(class_vectors ? to_accumulation(*class_vectors) : at::Tensor()) {}
};

// The rows of some inputs, one input after the other, packed.
template <typename T>
class PackedRows {
 public:
  PackedRows(std::vector<Source> sources, const Options& options, bool with_panels)
      : sources_(std::move(sources)),
        dims_(sources_[0].z.size(1)),
        classes_(sources_[0].classes.defined() ? sources_[0].classes.size(1) : 0),
        source_rows_(sources_[0].z.size(0)),
        count_(source_rows_ * static_cast<int64_t>(sources_.size())),
        depth_(dims_ + classes_),
        stride_(DEEPCLUST_SELECT(block_stride)(depth_)),
        class_scale_(std::sqrt(options.loss.temperature / options.loss.class_temperature)),
        normalize_(options.normalize),
        scratch_(size_of(count_, depth_, stride_, with_panels)),
        rows_(scratch_.take((count_ + kTileRows) * stride_)),
        inverse_norm_(scratch_.take(count_)) {
    const int64_t width = DEEPCLUST_SELECT(panel_columns<T>)();
    const int64_t padded = round_up(count_, width);
    T* zeros = scratch_.take(depth_);
    std::fill(zeros, zeros + depth_, T(0));
    std::fill(rows_ + count_ * stride_, rows_ + (count_ + kTileRows) * stride_, T(0));  // read by the last row panel
    if (with_panels) {
      panels_ = scratch_.take(padded * depth_);
      bias_ = scratch_.take(padded);
    }
    std::vector<T> largest(padded / width);
    at::parallel_for(0, padded / width, 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * width;
        for (int64_t row = first; row < std::min(first + width, count_); ++row) {
          const T squares = pack(row);
          largest[panel] = std::max(largest[panel], squares);
        }
        if (with_panels) {
          DEEPCLUST_SELECT(pack_panel<T>)(rows_, first, count_, depth_, stride_, zeros, panels_ + first * depth_,
                                          bias_ + first);
        }
      }
    });
    for (const T squares : largest) largest_square_ = std::max(largest_square_, squares);
  }

  int64_t count() const { return count_; }
  int64_t depth() const { return depth_; }
  int64_t stride() const { return stride_; }
  const T* rows() const { return rows_; }      // (count + kTileRows, stride)
  const T* panels() const { return panels_; }  // (padded, depth)
  const T* bias() const { return bias_; }      // (padded,)

  // Largest norm of a row; infinite if an element is not finite or a square overflows.
  T largest_norm() const { return std::sqrt(largest_square_); }

  // Carries a gradient by the packed rows of input `which` back to its features or to its class vectors.
  at::Tensor feature_gradient(const T* gradient /* (count, stride) */, size_t which) const {
    const at::Tensor& z = sources_[which].z;
    const at::Tensor result = at::empty(z.sizes(), z.options());
    const T* values = z.const_data_ptr<T>();
    T* target = result.mutable_data_ptr<T>();
    const int64_t first = static_cast<int64_t>(which) * source_rows_;
    at::parallel_for(0, source_rows_, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* from = gradient + (first + row) * stride_;
        T* to = target + row * dims_;
        std::copy(from, from + dims_, to);
        if (normalize_) {
          DEEPCLUST_SELECT(project_gradient<T>)(to, values + row * dims_, inverse_norm_[first + row], dims_);
        }
      }
    });
    return result;
  }

  at::Tensor class_gradient(const T* gradient /* (count, stride) */, size_t which) const {
    const at::Tensor& classes = sources_[which].classes;
    const at::Tensor result = at::empty(classes.sizes(), classes.options());
    T* target = result.mutable_data_ptr<T>();
    const T* from = gradient + static_cast<int64_t>(which) * source_rows_ * stride_ + dims_;
    for (int64_t row = 0; row < source_rows_; ++row, from += stride_, target += classes_) {
      for (int64_t k = 0; k < classes_; ++k) target[k] = from[k] * class_scale_;
    }
    return result;
  }

 private:
  static int64_t size_of(int64_t count, int64_t depth, int64_t stride, bool with_panels) {
    const auto size = Scratch<T>::size_of;
    const int64_t padded = with_panels ? round_up(count, DEEPCLUST_SELECT(panel_columns<T>)()) : 0;
    return size((count + kTileRows) * stride) + size(count) + size(depth) + size(padded * depth) + size(padded);
  }

  T pack(int64_t row) {
    const Source& source = sources_[row / source_rows_];
    const int64_t index = row % source_rows_;
    const T* classes = classes_ > 0 ? source.classes.template const_data_ptr<T>() + index * classes_ : nullptr;
    return DEEPCLUST_SELECT(pack_features<T>)(source.z.template const_data_ptr<T>() + index * dims_, classes, dims_,
                                              classes_, stride_, normalize_, class_scale_, rows_ + row * stride_,
                                              inverse_norm_ + row);
  }

  std::vector<Source> sources_;
  int64_t dims_, classes_, source_rows_;
  int64_t count_, depth_, stride_;
  T class_scale_;
  bool normalize_;
  Scratch<T> scratch_;
  T* rows_;
  T* inverse_norm_;
  T* panels_ = nullptr;
  T* bias_ = nullptr;
  T largest_square_ = 0;
};

// What both passes start from.
template <typename T>
struct Problem {
  bool two_views;
  PackedRows<T> anchors;                   // of both views, or of the anchors alone
  std::optional<PackedRows<T>> positives;  // with a queue
  std::optional<PackedRows<T>> queue;
  bool finite;
  ContrastiveInputs<T> in;

  Problem(const at::Tensor& z_a, const at::Tensor& z_b, const OptionalTensor& class_a, const OptionalTensor& class_b,
          const OptionalTensor& queue_z, const OptionalTensor& class_queue, const Options& options)
      : two_views(!queue_z), anchors(anchor_sources(z_a, z_b, class_a, class_b, two_views), options, true) {
    const T scale = 1 / options.loss.temperature;
    if (!two_views) {
      positives.emplace(std::vector<Source>{{z_b, class_b}}, options, false);
      queue.emplace(std::vector<Source>{{*queue_z, class_queue}}, options, false);
    }
    const PackedRows<T>& rows = two_views ? anchors : *queue;
    const T bound = scale * anchors.largest_norm() * rows.largest_norm();
    const T positive_bound = two_views ? bound : scale * anchors.largest_norm() * positives->largest_norm();
    finite = std::isfinite(bound) && std::isfinite(positive_bound);
    in = {two_views,
          rows.count(),
          rows.depth(),
          rows.stride(),
          rows.rows(),
          anchors.rows(),
          anchors.panels(),
          anchors.bias(),
          scale,
          hardness_of(options.loss.hardness),
          bound,
          2 * (1 + options.loss.hardness) * bound <= kMaxBoundedExponent};
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

template <typename T>
FusedContrastiveLossOutputs loss_of(const at::Tensor& z_a, const at::Tensor& z_b, const OptionalTensor& class_a,
                                    const OptionalTensor& class_b, const OptionalTensor& queue,
                                    const OptionalTensor& class_queue, const Options& options,
                                    std::string_view reduction) {
  const at::TensorOptions accumulation = z_a.options().dtype(c10::CppTypeToScalarType<T>::value);
  const int64_t count = z_a.size(0) * (queue ? 1 : 2);
  const bool is_sum = reduction != "none";
  at::Tensor loss = at::empty({count}, accumulation);
  const at::Tensor row_values = at::empty({kContrastiveValues, count}, accumulation);
  T* losses = loss.template mutable_data_ptr<T>();
  T* values = row_values.template mutable_data_ptr<T>();
  if (count > 0) {
    const Problem<T> problem(z_a, z_b, class_a, class_b, queue, class_queue, options);
    if (problem.finite) {
      std::vector<LogSums<T>> sums(count);
      std::vector<T> positive(count);
      if (!problem.two_views) {
        DEEPCLUST_SELECT(score_pairs<T>)(problem.anchors.rows(), problem.positives->rows(), count,
                                         problem.anchors.stride(), problem.in.score_scale, positive.data());
      }
      for_each_pair(problem.in.count, count, problem.two_views, !problem.two_views, [&](BlockPair pair) {
        pair.for_rows = problem.two_views;
        DEEPCLUST_SELECT(sum_tile<T>)(problem.in, pair, sums.data(), positive.data());
      });
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
    } else {
      loss.fill_(std::numeric_limits<double>::quiet_NaN());
      row_values.fill_(std::numeric_limits<double>::quiet_NaN());
    }
  }
  if (is_sum) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += losses[i];
    loss = at::empty({}, accumulation);
    *loss.template mutable_data_ptr<T>() =
        static_cast<T>(reduction == "mean" ? total / std::max<double>(count, 1) : total);
  }
  return {to_dtype(loss, z_a.scalar_type()), row_values};
}

FusedContrastiveLossOutputs fused_contrastive_loss_cpu(const at::Tensor& z_a,  // (B, D)
                                                       const at::Tensor& z_b,  // (B, D)
                                                       double temperature, double hardness, double debias,
                                                       const OptionalTensor& class_a,  // (B, K)
                                                       const OptionalTensor& class_b,  // (B, K)
                                                       double class_temperature,
                                                       const OptionalTensor& queue,        // (M, D)
                                                       const OptionalTensor& class_queue,  // (M, K)
                                                       bool normalize, std::string_view reduction) {
  check_fused_contrastive_loss(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature, queue,
                               class_queue, reduction);
  const int64_t negatives = queue ? queue->size(0) : std::max<int64_t>(2 * z_a.size(0) - 2, 0);
  const Options options{{temperature, hardness, debias, class_temperature, negatives}, normalize};
  const auto run = z_a.scalar_type() == at::kDouble ? loss_of<double> : loss_of<float>;
  return run(z_a, z_b, class_a, class_b, queue, class_queue, options, reduction);
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

template <typename T>
std::array<at::Tensor, kInputs> gradients_of(const at::Tensor& grad_loss, const at::Tensor& z_a, const at::Tensor& z_b,
                                             const at::Tensor& row_values, const OptionalTensor& class_a,
                                             const OptionalTensor& class_b, const OptionalTensor& queue,
                                             const OptionalTensor& class_queue, const Options& options,
                                             std::string_view reduction, const InputMask& wanted) {
  const Problem<T> problem(z_a, z_b, class_a, class_b, queue, class_queue, options);
  const ContrastiveInputs<T>& in = problem.in;
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
    for_each_pair(count, count, true, false, [&](BlockPair pair) {
      pair.for_rows = is_wanted(pair.row, pair.rows);
      pair.for_columns = pair.for_columns && is_wanted(pair.column, pair.columns);
      if (pair.for_rows || pair.for_columns) {
        DEEPCLUST_SELECT(add_gradients<T>)(in, of_anchors, pair, by_anchor, by_anchor);
      }
    });
    write(problem.anchors, anchor_gradient, 0, kZA, kClassA);
    write(problem.anchors, anchor_gradient, 1, kZB, kClassB);
    return gradients;
  }
  const at::Tensor queue_gradient = new_gradient(want_queue ? problem.queue->count() : 0);
  T* by_queue = queue_gradient.template mutable_data_ptr<T>();
  if (want_a || want_queue) {
    for_each_pair(in.count, count, false, !want_queue, [&](BlockPair pair) {
      pair.for_rows = want_queue;
      pair.for_columns = want_a;
      DEEPCLUST_SELECT(add_gradients<T>)(in, of_anchors, pair, by_queue, by_anchor);
    });
  }
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
    const at::Tensor& grad_loss,   // () or (anchors,)
    const at::Tensor& z_a,         // (B, D)
    const at::Tensor& z_b,         // (B, D)
    const at::Tensor& row_values,  // (kContrastiveValues, anchors)
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
  if (finite) {
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

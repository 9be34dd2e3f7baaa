// The neighbors come from nearest_neighbors. This file draws among them and writes the samples, B S D elements with as
// many normal numbers. These numbers take most of the time here, so they are computed in vectors, in float64, with a
// counter in each lane.
#include "neighbors/diffused_neighbor_gather.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "core/constants.h"
#include "core/cpu/capability.h"
#include "core/dtypes.h"
#include "neighbors/neighbor_draw.h"
#include "neighbors/philox.h"

#if DEEPCLUST_X86
#include <immintrin.h>
#endif

#define DEEPCLUST_KERNEL_FILE "neighbors/cpu/diffused_neighbor_gather.inl"
#include "core/cpu/foreach_capability.h"

namespace deepclust {
namespace {

// Elements of the samples in a task: their normal numbers take some microseconds, longer than handing out a task.
constexpr int64_t kElementsPerTask = 4096;

int64_t walkers_per_task(int64_t depth) { return std::max<int64_t>(1, kElementsPerTask / depth); }

template <typename Element>
using Accumulator = std::conditional_t<std::is_same_v<Element, double>, double, float>;

// The row in type T: the row itself if it has that type, else a copy in `memory`.
template <typename T, typename Element>
const T* row_as(const Element* row /* (depth,) */, T* memory /* (depth,) */, int64_t depth) {
  if constexpr (std::is_same_v<T, Element>) {
    return row;
  } else {
    for (int64_t k = 0; k < depth; ++k) memory[k] = static_cast<T>(row[k]);
    return memory;
  }
}

// Draws among the neighbors of rows, one row after the other; each thread has its own.
template <typename Element>
class Drawing {
 public:
  explicit Drawing(const GatherStep& step)
      : step_(step),
        width_(step.cosines.size(1)),
        depth_(step.rows.size(1)),
        weights_(width_),
        row_(depth_),
        other_(depth_) {}

  // Computes the weights of a row's candidates, all but `avoided`; false if the row is not finite.
  bool weigh(int64_t row, int64_t avoided) {
    constexpr double kNothing = -std::numeric_limits<double>::infinity();
    const Element* cosines = step_.cosines.const_data_ptr<Element>() + row * width_;
    if (std::isnan(static_cast<Accumulator<Element>>(cosines[0]))) return false;
    const int64_t* candidates = candidates_of(row);
    double largest = kNothing;
    for (int64_t j = 0, counted = 0; j < width_; ++j) {
      const bool counts = candidates[j] >= 0 && candidates[j] != avoided && counted < step_.limit;
      weights_[j] = counts ? cosine(row, candidates[j], cosines[j]) : kNothing;
      counted += counts;
      largest = std::max(largest, weights_[j]);
    }
    for (double& weight : weights_) weight = weight == kNothing ? 0 : std::exp((weight - largest) / step_.temperature);
    return true;
  }

  // Draws by the weights of the last row that was weighed: an index of the bank, or -1.
  int64_t draw(int64_t row, double uniform) const {
    const int position = draw_position(weights_.data(), static_cast<int>(width_), uniform);
    return position < 0 ? -1 : candidates_of(row)[position];
  }

 private:
  const int64_t* candidates_of(int64_t row) const { return step_.candidates.const_data_ptr<int64_t>() + row * width_; }

  // Cosines of half precision are computed again, in float64: their rounding would change the probabilities.
  double cosine(int64_t row, int64_t candidate, Element given) {
    if constexpr (sizeof(Element) > 2) {
      return static_cast<double>(given);
    } else {
      const double* x = row_as(step_.rows.const_data_ptr<Element>() + row * depth_, row_.data(), depth_);
      const double* y = row_as(step_.bank.const_data_ptr<Element>() + candidate * depth_, other_.data(), depth_);
      return DEEPCLUST_SELECT(cosine_of<double>)(x, y, depth_);
    }
  }

  const GatherStep& step_;
  int64_t width_, depth_;
  std::vector<double> weights_, row_, other_;
};

// Makes one step of all walkers: each draws a neighbor of the row that it stands on, and writes that neighbor's row. In
// the last step noise is added and the sample is normalized, if asked.
template <typename Element>
DiffusedNeighborGatherOutputs gather_step(const GatherStep& in) {
  using T = Accumulator<Element>;
  // In the first step all walkers of a query stand on the query; later each stands on a row of its own.
  const int64_t depth = in.rows.size(1), num_samples = in.num_samples;
  const bool first_step = in.step == 0, draws = in.cosines.defined();
  const int64_t walkers_of_row = first_step ? num_samples : 1;
  const int64_t walkers = in.rows.size(0) * walkers_of_row, queries = walkers / num_samples;
  const at::TensorOptions options = in.rows.options(), wide = options.dtype(c10::CppTypeToScalarType<T>());
  const at::Tensor samples = at::empty({queries, num_samples, depth}, options);
  const at::Tensor indices = at::empty({queries, num_samples}, options.dtype(at::kLong));
  const at::Tensor inverse_norm = in.normalize ? at::empty({queries, num_samples}, wide) : at::empty({0}, wide);
  const Element* rows = in.rows.const_data_ptr<Element>();
  const Element* bank = draws ? in.bank.const_data_ptr<Element>() : nullptr;
  const int64_t* avoided = in.avoided.defined() ? in.avoided.const_data_ptr<int64_t>() : nullptr;
  const int64_t* previous = in.previous.defined() ? in.previous.const_data_ptr<int64_t>() : nullptr;
  Element* const sample_rows = samples.mutable_data_ptr<Element>();
  int64_t* const index = indices.mutable_data_ptr<int64_t>();
  T* const scales = in.normalize ? inverse_norm.mutable_data_ptr<T>() : nullptr;
  const auto seed = static_cast<uint64_t>(in.seed);
  at::parallel_for(0, walkers, walkers_per_task(depth), [&](int64_t begin, int64_t end) {
    std::optional<Drawing<Element>> drawing;
    if (draws) drawing.emplace(in);
    std::vector<T> memory(depth);
    bool finite = true;
    for (int64_t walker = begin; walker < end; ++walker) {
      const int64_t row = walker / walkers_of_row, query = walker / num_samples, number = walker % num_samples;
      const Element* source = rows + row * depth;
      index[walker] = previous != nullptr ? previous[walker] : -1;
      // 1. The weights of the candidates, softmax(cos / temperature), and the row that is drawn by them.
      if (draws) {
        if (walker == begin || walker % walkers_of_row == 0) {
          finite = drawing->weigh(row, avoided != nullptr ? avoided[query] : -1);
        }
        const int64_t drawn = finite ? drawing->draw(row, philox_uniform(seed, query, number, in.step)) : -1;
        if (drawn >= 0) {
          index[walker] = drawn;
          source = bank + drawn * depth;
        }
      }
      // 2. The sample: the drawn row, or without a draw the row that the walker stands on, plus noise_std times normal
      // numbers.
      T* sample = memory.data();
      if constexpr (std::is_same_v<T, Element>) sample = sample_rows + walker * depth;
      const T* from = row_as(source, sample, depth);
      if (in.noise_std > 0) {
        DEEPCLUST_SELECT(add_noise<T>)(from, sample, depth, in.noise_std, seed, query, number);
      } else if (from != sample) {
        std::memcpy(sample, from, depth * sizeof(T));
      }
      // 3. With `normalize` it is divided by its norm. It is NaN if the row, or now the sample, is not finite.
      bool is_number = finite;
      if (in.normalize) {
        is_number = DEEPCLUST_SELECT(normalize_rows<T>)(sample, 1, depth, true, sample, scales + walker) && finite;
        if (!is_number) scales[walker] = std::numeric_limits<T>::quiet_NaN();
      }
      if (!is_number) std::fill(sample, sample + depth, std::numeric_limits<T>::quiet_NaN());
      if constexpr (!std::is_same_v<T, Element>) std::copy(sample, sample + depth, sample_rows + walker * depth);
    }
  });
  return {samples, indices, inverse_norm};
}

DiffusedNeighborGatherOutputs diffused_neighbor_gather_cpu(const at::Tensor& query,  // (B, D)
                                                           const at::Tensor& bank,   // (M, D)
                                                           const at::Tensor& seed,   // () int64
                                                           int64_t num_neighbors, double temperature, double noise_std,
                                                           int64_t num_steps, int64_t num_samples,
                                                           const std::optional<at::Tensor>& exclude,  // (B,) int64
                                                           const std::optional<at::Tensor>& valid,    // (M,) bool
                                                           bool normalize) {
  check_diffused_neighbor_gather(query, bank, seed, num_neighbors, temperature, noise_std, num_steps, num_samples,
                                 exclude, valid);
  const auto gather = query.scalar_type() == at::kDouble  ? gather_step<double>
                      : query.scalar_type() == at::kFloat ? gather_step<float>
                      : query.scalar_type() == at::kHalf  ? gather_step<at::Half>
                                                          : gather_step<at::BFloat16>;
  return walk_to_neighbors(query, bank, seed, num_neighbors, temperature, noise_std, num_steps, num_samples, exclude,
                           valid, normalize, gather);
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> gradient_of(const at::Tensor& grad_samples, const at::Tensor& samples,
                                               const at::Tensor& indices, const at::Tensor& inverse_norm,
                                               int64_t bank_rows, bool want_query, bool want_bank) {
  const int64_t num_samples = indices.size(1), walkers = indices.numel(), depth = grad_samples.size(2);
  const bool normalize = inverse_norm.dim() == 2;
  const at::TensorOptions options = grad_samples.options();
  const at::Tensor grad_query = want_query ? at::zeros({indices.size(0), depth}, options) : at::empty({0}, options);
  const at::Tensor grad_bank = want_bank ? at::zeros({bank_rows, depth}, options) : at::empty({0}, options);
  const auto [sorted_indices, order] = sort_by_target(indices, bank_rows);
  const int64_t* target_row = order.defined() ? sorted_indices.const_data_ptr<int64_t>() : nullptr;
  const int64_t* walker_at = order.defined() ? order.const_data_ptr<int64_t>() : nullptr;
  const T* gradients = grad_samples.const_data_ptr<T>();
  const T* directions = normalize ? samples.const_data_ptr<T>() : nullptr;
  const T* scales = normalize ? inverse_norm.const_data_ptr<T>() : nullptr;
  T* const query_sums = want_query ? grad_query.mutable_data_ptr<T>() : nullptr;
  T* const bank_sums = want_bank ? grad_bank.mutable_data_ptr<T>() : nullptr;
  const auto walker_of = [&](int64_t place) { return walker_at != nullptr ? walker_at[place] : place; };
  const auto sum_of = [&](int64_t place) -> T* {  // null: not wanted
    const int64_t row = target_row != nullptr ? target_row[place] : -1;
    if (row >= 0) return bank_sums != nullptr ? bank_sums + row * depth : nullptr;
    return query_sums != nullptr ? query_sums + walker_of(place) / num_samples * depth : nullptr;
  };
  // A target belongs to the task with the first of its walkers, which are neighbors in this order and added in it.
  at::parallel_for(0, walkers, walkers_per_task(depth), [&](int64_t begin, int64_t end) {
    while (begin > 0 && begin < end && sum_of(begin) == sum_of(begin - 1)) ++begin;
    for (int64_t place = begin; place < walkers && (place < end || sum_of(place) == sum_of(place - 1)); ++place) {
      T* sum = sum_of(place);
      if (sum == nullptr) continue;
      const int64_t walker = walker_of(place);
      const T* gradient = gradients + walker * depth;
      if (!normalize) {
        DEEPCLUST_SELECT(add_row<T>)(sum, gradient, depth);
        continue;
      }
      const T* direction = directions + walker * depth;
      const T scale = scales[walker] >= T(1 / kMinNorm) ? T(0) : scales[walker];
      const T along = DEEPCLUST_SELECT(dot_product<T>)(direction, gradient, depth);
      DEEPCLUST_SELECT(add_projected<T>)(sum, gradient, direction, along, scale, depth);
    }
  });
  return {grad_query, grad_bank};
}

std::tuple<at::Tensor, at::Tensor> diffused_neighbor_gather_backward_cpu(const at::Tensor& grad_samples,  // (B, S, D)
                                                                         const at::Tensor& samples,
                                                                         const at::Tensor& indices,       // (B, S)
                                                                         const at::Tensor& inverse_norm,  // (B, S)
                                                                         int64_t bank_rows, bool want_query,
                                                                         bool want_bank) {
  const at::ScalarType dtype = grad_samples.scalar_type();
  const auto gradient = dtype == at::kDouble ? gradient_of<double> : gradient_of<float>;
  const auto [grad_query, grad_bank] =
      gradient(to_accumulation(grad_samples), to_accumulation(samples), indices.contiguous(), inverse_norm.contiguous(),
               bank_rows, want_query, want_bank);
  return {to_dtype(grad_query, dtype), to_dtype(grad_bank, dtype)};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("diffused_neighbor_gather", diffused_neighbor_gather_cpu);
  m.impl("diffused_neighbor_gather_backward", diffused_neighbor_gather_backward_cpu);
}

}  // namespace deepclust

// The neighbors come from nearest_neighbors; what is left is to draw among them and to write the samples, B S D elements
// with as many normal numbers. Those cost the most here, so they are computed in vectors, in float64: a counter per lane.
#include "ops/diffused_neighbor_gather.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/constants.h"
#include "common/dtypes.h"
#include "common/neighbor_draw.h"
#include "common/philox.h"

#define DEEPCLUST_KERNEL_FILE "cpu/diffused_neighbor_gather.inl"
#include "common/foreach_capability.h"

namespace deepclust {
namespace {

constexpr int64_t kElementsPerTask = 4096;

int64_t walkers_per_task(int64_t depth) { return std::max<int64_t>(1, kElementsPerTask / depth); }

// The weights of one row's candidates, 0 for those that do not count; false where the row is not finite.
template <typename T>
bool weigh_candidates(const T* cosines,           // (width,)
                      const int64_t* candidates,  // (width,)
                      int64_t width, int64_t limit, int64_t avoided, double temperature,
                      double* weights  // (width,)
) {
  if (std::isnan(cosines[0])) return false;
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t j = 0, counted = 0; j < width; ++j) {
    const bool counts = candidates[j] >= 0 && candidates[j] != avoided && counted < limit;
    weights[j] = counts ? static_cast<double>(cosines[j]) : -std::numeric_limits<double>::infinity();
    counted += counts;
    largest = std::max(largest, weights[j]);
  }
  for (int64_t j = 0; j < width; ++j) {
    weights[j] = std::isfinite(weights[j]) ? std::exp((weights[j] - largest) / temperature) : 0;
  }
  return true;
}

template <typename T>
DiffusedNeighborGatherOutputs gather_step(const GatherStep& in) {
  const int64_t depth = in.rows.size(1), num_samples = in.num_samples;
  const bool first_step = in.step == 0, draws = in.cosines.defined();
  const int64_t walkers = first_step ? in.rows.size(0) * num_samples : in.rows.size(0);
  const int64_t walkers_of_row = first_step ? num_samples : 1;
  const int64_t width = draws ? in.cosines.size(1) : 0;
  const at::TensorOptions options = in.rows.options();
  const std::vector<int64_t> shape = {walkers / num_samples, num_samples};
  const at::Tensor samples = at::empty({shape[0], num_samples, depth}, options);
  const at::Tensor indices = at::empty(shape, options.dtype(at::kLong));
  const at::Tensor inverse_norm = in.normalize ? at::empty(shape, options) : at::empty({0}, options);
  const T* rows = in.rows.const_data_ptr<T>();
  const T* bank = draws ? in.bank.const_data_ptr<T>() : nullptr;
  const T* cosines = draws ? in.cosines.const_data_ptr<T>() : nullptr;
  const int64_t* candidates = draws ? in.candidates.const_data_ptr<int64_t>() : nullptr;
  const int64_t* avoided = in.avoided.defined() ? in.avoided.const_data_ptr<int64_t>() : nullptr;
  const int64_t* previous = in.previous.defined() ? in.previous.const_data_ptr<int64_t>() : nullptr;
  T* sample_rows = samples.mutable_data_ptr<T>();
  int64_t* drawn = indices.mutable_data_ptr<int64_t>();
  T* scales = in.normalize ? inverse_norm.mutable_data_ptr<T>() : nullptr;
  const auto seed = static_cast<uint64_t>(in.seed);
  at::parallel_for(0, walkers, walkers_per_task(depth), [&](int64_t begin, int64_t end) {
    std::vector<double> weights(width);
    int64_t weighed = -1;  // the row that the weights are of
    bool finite = true;
    for (int64_t walker = begin; walker < end; ++walker) {
      const int64_t row = walker / walkers_of_row, query = walker / num_samples, number = walker % num_samples;
      const T* source = rows + row * depth;
      drawn[walker] = previous != nullptr ? previous[walker] : -1;
      if (draws) {
        if (row != weighed) {
          finite = weigh_candidates(cosines + row * width, candidates + row * width, width, in.limit,
                                    avoided != nullptr ? avoided[query] : -1, in.temperature, weights.data());
          weighed = row;
        }
        const int position = finite ? draw_position(weights.data(), static_cast<int>(width),
                                                    philox_uniform(seed, query, number, in.step))
                                    : -1;
        if (position >= 0) {
          drawn[walker] = candidates[row * width + position];
          source = bank + drawn[walker] * depth;
        }
      }
      T* sample = sample_rows + walker * depth;
      if (in.noise_std > 0) {
        DEEPCLUST_SELECT(add_noise<T>)(source, sample, depth, in.noise_std, seed, query, number);
      } else {
        std::memcpy(sample, source, depth * sizeof(T));
      }
      const bool normal = !in.normalize || DEEPCLUST_SELECT(normalize_rows<T>)(sample, 1, depth, true, sample, scales + walker);
      if (!finite || !normal) std::fill(sample, sample + depth, std::numeric_limits<T>::quiet_NaN());
      if (in.normalize && !(finite && normal)) scales[walker] = std::numeric_limits<T>::quiet_NaN();
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
  const at::Tensor read_bank = num_neighbors > 0 ? to_accumulation(bank) : bank;
  auto [samples, indices, inverse_norm] = walk_to_neighbors(
      to_accumulation(query), read_bank, seed, num_neighbors, temperature, noise_std, num_steps, num_samples, exclude,
      valid, normalize, query.scalar_type() == at::kDouble ? gather_step<double> : gather_step<float>);
  return {to_dtype(samples, query.scalar_type()), indices, inverse_norm};
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> gradient_of(const at::Tensor& grad_samples, const at::Tensor& samples,
                                               const at::Tensor& indices, const at::Tensor& inverse_norm,
                                               int64_t bank_rows, bool want_query, bool want_bank) {
  const int64_t num_samples = indices.size(1), walkers = indices.numel(), depth = grad_samples.size(2);
  const bool normalize = inverse_norm.dim() == 2;
  const at::TensorOptions options = grad_samples.options();
  const at::Tensor grad_query =
      want_query ? at::zeros({indices.size(0), depth}, options) : at::empty({0}, options);
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
      const T scale = scales[walker];
      const bool clamped = scale >= T(1 / kMinNorm);
      const T along = clamped ? T(0) : DEEPCLUST_SELECT(dot_product<T>)(direction, gradient, depth);
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

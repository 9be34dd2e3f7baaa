#include "neighbors/diffused_neighbor_gather.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <utility>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"
#include "neighbors/nearest_neighbors.h"

namespace deepclust {

using OptionalTensor = std::optional<at::Tensor>;

namespace {

// How many candidates a step needs for `num_neighbors` to be left without the excluded row: it and the row the walker
// stands on cannot both be left out by nearest_neighbors.
int64_t candidates_of_step(int64_t step, int64_t num_neighbors, bool has_exclude) {
  return num_neighbors + (step > 0 && has_exclude ? 1 : 0);
}

void check_count(int64_t value, const char* name) {
  TORCH_CHECK_VALUE(value >= 1 && value <= std::numeric_limits<int32_t>::max(), name,
                    ": expected 1 to 2147483647, got ", value);
}

}  // namespace

void check_diffused_neighbor_gather(const at::Tensor& query, const at::Tensor& bank, const at::Tensor& seed,
                                    int64_t num_neighbors, double temperature, double noise_std, int64_t num_steps,
                                    int64_t num_samples, const OptionalTensor& exclude, const OptionalTensor& valid) {
  const bool reads_bank = num_neighbors > 0;
  check_query_and_bank(query, reads_bank ? bank : query, reads_bank ? exclude : std::nullopt,
                       reads_bank ? valid : std::nullopt);
  TORCH_CHECK_TYPE(seed.scalar_type() == at::kLong, "seed: expected dtype int64, got ", seed.scalar_type());
  TORCH_CHECK_VALUE(seed.dim() == 0 && seed.is_cpu(), "seed: expected shape [] on the CPU, got ", seed.sym_sizes(),
                    " on ", seed.device());
  check_positive(temperature, "temperature");
  TORCH_CHECK_VALUE(std::isfinite(noise_std) && noise_std >= 0,
                    "noise_std: expected a finite number of at least 0, got ", noise_std);
  check_count(num_steps, "num_steps");
  check_count(num_samples, "num_samples");
  const int64_t most = kMaxNeighbors - (num_steps > 1 && exclude ? 1 : 0);
  TORCH_CHECK_VALUE(num_neighbors >= 0 && num_neighbors <= most, "num_neighbors: expected 0 to ", most,
                    most < kMaxNeighbors ? " with exclude and several steps, got " : ", got ", num_neighbors);
}

DiffusedNeighborGatherOutputs diffused_neighbor_gather(const at::Tensor& query, const at::Tensor& bank,
                                                       const at::Tensor& seed, c10::SymInt num_neighbors,
                                                       double temperature, double noise_std, c10::SymInt num_steps,
                                                       c10::SymInt num_samples, const OptionalTensor& exclude,
                                                       const OptionalTensor& valid, bool normalize) {
  static const auto op = find_op<decltype(diffused_neighbor_gather)>("deepclust_ext::diffused_neighbor_gather");
  return op.call(query, bank, seed, std::move(num_neighbors), temperature, noise_std, std::move(num_steps),
                 std::move(num_samples), exclude, valid, normalize);
}

DiffusedNeighborGatherOutputs walk_to_neighbors(
    const at::Tensor& query, const at::Tensor& bank, const at::Tensor& seed, int64_t num_neighbors, double temperature,
    double noise_std, int64_t num_steps, int64_t num_samples, const OptionalTensor& exclude,
    const OptionalTensor& valid, bool normalize,
    const std::function<DiffusedNeighborGatherOutputs(const GatherStep&)>& gather) {
  GatherStep step{};
  step.rows = query.contiguous();
  step.num_samples = num_samples;
  step.limit = num_neighbors;
  step.temperature = temperature;
  step.seed = *seed.const_data_ptr<int64_t>();
  DiffusedNeighborGatherOutputs outputs;
  const int64_t steps = num_neighbors > 0 ? num_steps : 1;
  for (; step.step < steps; ++step.step) {
    if (num_neighbors > 0) {
      step.bank = bank.contiguous();
      OptionalTensor left_out = exclude;
      if (step.step > 0) {
        step.previous = std::get<1>(outputs);
        step.rows = std::get<0>(outputs).view({-1, query.size(1)});
        if (exclude) step.avoided = exclude->contiguous();
        left_out = exclude ? at::where(step.previous.ge(0), step.previous, exclude->unsqueeze(1)) : step.previous;
        left_out = left_out->view({-1});
      }
      const auto found = nearest_neighbors(
          step.rows, step.bank, candidates_of_step(step.step, num_neighbors, exclude.has_value()), left_out, valid);
      step.cosines = std::get<0>(found);
      step.candidates = std::get<1>(found);
    }
    const bool is_last = step.step == steps - 1;
    step.noise_std = is_last ? noise_std : 0;
    step.normalize = is_last && normalize;
    outputs = gather(step);
  }
  return outputs;
}

std::tuple<at::Tensor, at::Tensor> sort_by_target(const at::Tensor& indices, int64_t bank_rows) {
  if (bank_rows == 0) return {};
  return at::sort(indices.reshape({-1}), /*stable=*/true, /*dim=*/0, /*descending=*/false);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<at::Tensor, at::Tensor> diffused_neighbor_gather_backward(const at::Tensor& grad_samples,  // (B, S, D)
                                                                     const at::Tensor& samples,  // (B, S, D) or (0,)
                                                                     const at::Tensor& indices,  // (B, S) int64
                                                                     const at::Tensor& inverse_norm,  // (B, S) or (0,)
                                                                     c10::SymInt bank_rows, bool want_query,
                                                                     bool want_bank) {
  static const auto op =
      find_op<decltype(diffused_neighbor_gather_backward)>("deepclust_ext::diffused_neighbor_gather_backward");
  return op.call(grad_samples, samples, indices, inverse_norm, std::move(bank_rows), want_query, want_bank);
}

class DiffusedNeighborGather : public torch::autograd::Function<DiffusedNeighborGather> {
 public:
  // Only the samples go through the graph; `outputs` receives the rest. The bank, which has no rows where it
  // is not read, is not kept, so a queue may change between forward and backward pass.
  template <class Run>
  static at::Tensor forward(AutogradContext* context, const at::Tensor& /*query*/, const at::Tensor& bank,
                            const Run* run, DiffusedNeighborGatherOutputs* outputs) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    *outputs = (*run)();
    const auto& [samples, indices, inverse_norm] = *outputs;
    const bool normalize = inverse_norm.dim() == 2;
    context->save_for_backward({normalize ? samples : at::empty({0}, samples.options()), indices, inverse_norm});
    context->saved_data["bank_rows"] = bank.sym_size(0);
    return samples;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const bool want_query = context->needs_input_grad(0), want_bank = context->needs_input_grad(1);
    const auto [grad_query, grad_bank] = diffused_neighbor_gather_backward(
        grads[0], saved[0], saved[1], saved[2], context->saved_data["bank_rows"].toSymInt(), want_query, want_bank);
    const at::Tensor none;
    return {want_query ? grad_query : none, want_bank ? grad_bank : none, none, none};
  }
};

DiffusedNeighborGatherOutputs diffused_neighbor_gather_autograd(const at::Tensor& query, const at::Tensor& bank,
                                                                const at::Tensor& seed, c10::SymInt num_neighbors,
                                                                double temperature, double noise_std,
                                                                c10::SymInt num_steps, c10::SymInt num_samples,
                                                                const OptionalTensor& exclude,
                                                                const OptionalTensor& valid, bool normalize) {
  const auto run = [&] {
    return diffused_neighbor_gather(query, bank, seed, num_neighbors, temperature, noise_std, num_steps, num_samples,
                                    exclude, valid, normalize);
  };
  const bool reads_bank = num_neighbors > 0;
  if (!(reads_bank ? needs_graph(query, bank) : needs_graph(query))) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return run();
  }
  DiffusedNeighborGatherOutputs outputs;
  const at::Tensor samples =
      DiffusedNeighborGather::apply(query, reads_bank ? bank : at::empty({0}, query.options()), &run, &outputs);
  return {samples, std::get<1>(outputs), std::get<2>(outputs)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "diffused_neighbor_gather(Tensor query, Tensor bank, Tensor seed, SymInt num_neighbors=10, float "
      "temperature=0.1, "
      "float noise_std=0.001, SymInt num_steps=1, SymInt num_samples=1, Tensor? exclude=None, Tensor? valid=None, "
      "bool normalize=False) -> (Tensor samples, Tensor indices, Tensor inverse_norm)");
  m.def(
      "diffused_neighbor_gather_backward(Tensor grad_samples, Tensor samples, Tensor indices, Tensor inverse_norm, "
      "SymInt bank_rows, bool want_query, bool want_bank) -> (Tensor grad_query, Tensor grad_bank)");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) {
  m.impl("diffused_neighbor_gather", diffused_neighbor_gather_autograd);
  m.impl("diffused_neighbor_gather_backward", torch::autograd::autogradNotImplementedFallback());
}

DEEPCLUST_AUTOCAST(diffused_neighbor_gather)

}  // namespace deepclust

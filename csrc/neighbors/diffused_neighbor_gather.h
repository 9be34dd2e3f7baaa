// diffused_neighbor_gather: samples near a query, drawn among its nearest neighbors in a bank.
//
// For each of `num_samples` walkers of a query q, `num_steps` times: of the bank rows the `num_neighbors` nearest by
// cosine to the row where the walker stands, first q, then the bank row drawn last, draw one with probability
//     p_j = exp(cos_j / temperature) / sum_l exp(cos_l / temperature)
// never the row the walker stands on, nor the row that `exclude` names for the query. The sample is the bank row drawn
// last, plus `noise_std` times a standard normal number for each element, divided by max(L2 norm, 1e-12) if
// `normalize`. A walker that finds no candidate stays where it is; one that never found any, and every one if
// num_neighbors = 0, has index -1 and sample q plus noise (the bank is not read then). Where nearest_neighbors gives
// NaN, the sample is NaN.
//
// Random numbers are those of neighbors/philox.h for `seed` and for query, sample and step or element: they depend
// neither on the device nor on the number of queries or threads. The gradient reaches the bank rows that were drawn and
// the queries of index -1, in a fixed order; drawing has none, second derivatives are an error. float16 and bfloat16
// are computed in float32. Sources: HaDis, arXiv 2401.14038; the walk: diffusion on the graph of nearest neighbors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <functional>
#include <optional>
#include <tuple>

namespace deepclust {

// samples (B, S, D) in the input dtype, indices (B, S) int64, and for the backward pass inverse_norm (B, S) in the
// accumulation dtype, (0,) without `normalize`.
using DiffusedNeighborGatherOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

DiffusedNeighborGatherOutputs diffused_neighbor_gather(const at::Tensor& query,  // (B, D)
                                                       const at::Tensor& bank,   // (M, D)
                                                       const at::Tensor& seed,   // () int64 on the CPU
                                                       c10::SymInt num_neighbors, double temperature, double noise_std,
                                                       c10::SymInt num_steps, c10::SymInt num_samples,
                                                       const std::optional<at::Tensor>& exclude,  // (B,) int64
                                                       const std::optional<at::Tensor>& valid,    // (M,) bool
                                                       bool normalize);

void check_diffused_neighbor_gather(const at::Tensor& query, const at::Tensor& bank, const at::Tensor& seed,
                                    int64_t num_neighbors, double temperature, double noise_std, int64_t num_steps,
                                    int64_t num_samples, const std::optional<at::Tensor>& exclude,
                                    const std::optional<at::Tensor>& valid);

// What a device does in one step: draw a candidate for every walker, and gather where it then stands.
struct GatherStep {
  at::Tensor rows;        // (R, D) where the walkers stand: R = B, the same row for all of a query, or B * S
  at::Tensor bank;        // (M, D)
  at::Tensor cosines;     // (R, K) of the rows' neighbors; undefined: nothing is drawn
  at::Tensor candidates;  // (R, K) int64, ascending by cosine from the end, -1 where there is none
  at::Tensor avoided;     // (B,) int64 a candidate that does not count, or undefined
  at::Tensor previous;    // (B, S) int64 what was drawn last, or undefined: nothing yet
  int64_t num_samples;
  int64_t limit;  // so many of the candidates count
  int64_t step;
  double temperature;
  double noise_std;
  int64_t seed;
  bool normalize;
};

// All steps, with one device's `gather`; every tensor contiguous. For the backends, which have checked the arguments.
DiffusedNeighborGatherOutputs walk_to_neighbors(
    const at::Tensor& query, const at::Tensor& bank, const at::Tensor& seed, int64_t num_neighbors, double temperature,
    double noise_std, int64_t num_steps, int64_t num_samples, const std::optional<at::Tensor>& exclude,
    const std::optional<at::Tensor>& valid, bool normalize,
    const std::function<DiffusedNeighborGatherOutputs(const GatherStep&)>& gather);

// The walkers sorted by the bank row they drew, those without one first, each row's in ascending order: the sorted
// indices and the walkers, both (B * S,) int64. Undefined without a bank, where no walker has drawn.
std::tuple<at::Tensor, at::Tensor> sort_by_target(const at::Tensor& indices /* (B, S) */, int64_t bank_rows);

}  // namespace deepclust

// Sinkhorn-Knopp by logarithmic sums, so that no scores and no epsilon need a way of their own.
//
// An iteration reads the scores once from memory: a thread block takes some rows, sums each of them for its u, and
// while they are in the cache sums their columns, slice by slice, for the next v. What the slices have found, relative
// to their largest exponents, is merged in a fixed order: by another kernel, or in a problem small enough for one
// thread block by this one, which then makes all iterations. Assignments are computed relative to the sum of their row.
// Where a problem stops early is decided on the device, and the launches are the same.
//
// Cost: an exponential for each of the two sums over every element and iteration, before which the largest exponent is
// found, so that a row and a slice are read twice, the second time from the cache. A matrix of exponentials, computed
// once, would save that work, but be as large, and be of no use where it runs empty. Memory: 3/32 of the scores for the
// slices.
// The gradient takes three exponentials forth and back for each iteration, and no memory like the scores either.
#include "sinkhorn/cuda/sinkhorn_knopp.cuh"

#include <limits>

#include "core/cuda/element_type.cuh"
#include "core/host_device.h"
#include "sinkhorn/cuda/sinkhorn_backward.cuh"
#include "sinkhorn/cuda/sinkhorn_forward.cuh"
#include "sinkhorn/cuda/sinkhorn_problems.cuh"

namespace deepclust {
namespace {

using namespace sinkhorn;

constexpr int kLaneColumns = 4;                 // of a row, if these are few: enough to hide some of their latency
constexpr int64_t kOneBlockElements = 1 << 14;  // above, a problem takes longer in one thread block than launches do

void add_problem_bytes(const SinkhornInputs& inputs, SinkhornBytes& bytes) {
  bytes.field[kSampleShares] = inputs.problems * inputs.samples * accumulator_bytes(inputs.type);
  bytes.field[kClusterShares] = inputs.problems * inputs.clusters * accumulator_bytes(inputs.type);
  bytes.field[kInvalid] = inputs.problems * static_cast<int64_t>(sizeof(unsigned));
}

template <class T>
T* field_of(const SinkhornWorkspace& workspace, SinkhornField field) {
  return static_cast<T*>(workspace.field[field]);
}

template <class Element>
void set_problems(const SinkhornInputs& inputs, const SinkhornPlan& plan, const SinkhornWorkspace& workspace,
                  Problems<Element>& in) {
  using T = Widened<Element>;
  in.scores = static_cast<const Element*>(inputs.scores);
  for (int side = 0; side < 2; ++side) {
    in.given[side] = static_cast<const T*>(inputs.shares[side]);
    in.given_stride[side] = inputs.share_stride[side];
  }
  in.shares[kSamples] = field_of<T>(workspace, kSampleShares);
  in.shares[kClusters] = field_of<T>(workspace, kClusterShares);
  in.invalid = field_of<unsigned>(workspace, kInvalid);
  const double inverse = smaller(1 / inputs.epsilon, static_cast<double>(Limits<T>::kMax));
  in.inverse_epsilon = static_cast<T>(inverse);
  in.inverse_epsilon_rest = static_cast<T>(inverse - static_cast<double>(in.inverse_epsilon));
  in.grid = CoarseGrid<T>::of(inputs.epsilon);
  in.largest_score = smaller(Limits<T>::kMax, Limits<T>::kMax / in.inverse_epsilon) / 64;
  in.samples = inputs.samples;
  in.clusters = inputs.clusters;
  in.num_iters = inputs.num_iters;
  in.chunk_rows = plan.chunk_rows;
  in.chunks = plan.chunks;
  in.slices = plan.slices;
  in.tiles = plan.tiles;
  in.row_lanes = plan.row_lanes;
}

// `part` thread blocks for each problem; more than a grid takes are refused, not launched in part.
template <class... P, class... A>
cudaError_t launch_parts(void (*kernel)(P...), int64_t problems, int64_t parts, cudaStream_t stream,
                         const A&... arguments) {
  if (parts > std::numeric_limits<int32_t>::max() / problems) return cudaErrorInvalidValue;
  return device::launch(kernel, dim3(static_cast<unsigned>(problems * parts)), dim3(kThreads), 0, stream, arguments...);
}

template <class Element>
cudaError_t launch_forward(const SinkhornForwardArguments<Element>& in, int64_t problems, cudaStream_t stream) {
  if (in.chunks == 1) return launch_parts(solve_kernel<Element>, problems, 1, stream, in);
  const Problems<Element>& shared = in;
  cudaError_t error = launch_parts(prepare_shares_kernel<Element>, problems, 1, stream, shared, false);
  if (error == cudaSuccess) error = launch_parts(start_kernel<Element>, problems, in.chunks, stream, in);
  for (int64_t iteration = 0; iteration < in.num_iters && error == cudaSuccess; ++iteration) {
    error = launch_parts(merge_kernel<Element>, problems, in.tiles, stream, in, iteration);
    if (error == cudaSuccess) {
      error = launch_parts(iterate_kernel<Element>, problems, in.chunks, stream, in, iteration);
    }
  }
  return error;
}

template <class Element>
cudaError_t launch_backward(const SinkhornBackwardArguments<Element>& in, int64_t problems, cudaStream_t stream) {
  if (in.chunks == 1) return launch_parts(gradient_kernel<Element>, problems, 1, stream, in);
  const Problems<Element>& shared = in;
  cudaError_t error = launch_parts(prepare_shares_kernel<Element>, problems, 1, stream, shared, true);
  if (error == cudaSuccess) error = launch_parts(start_gradient_kernel<Element>, problems, in.chunks, stream, in);
  for (int64_t iteration = in.num_iters - 1; iteration >= 0 && error == cudaSuccess; --iteration) {
    error = launch_parts(merge_gradient_kernel<Element>, problems, in.tiles, stream, in, iteration);
    if (error == cudaSuccess && iteration > 0) {
      error = launch_parts(iterate_gradient_kernel<Element>, problems, in.chunks, stream, in, iteration);
    }
  }
  if (error != cudaSuccess) return error;
  return launch_parts(write_gradient_kernel<Element>, problems, in.chunks, stream, in);
}

}  // namespace

SinkhornPlan plan_sinkhorn_knopp(const SinkhornInputs& inputs) {
  SinkhornPlan plan{};
  plan.slices = divide_up(inputs.samples, kSliceRows);
  plan.tiles = divide_up(inputs.clusters, kTileColumns);
  plan.row_lanes = 1;
  while (plan.row_lanes < 32 && plan.row_lanes * kLaneColumns < inputs.clusters) plan.row_lanes *= 2;
  const bool is_small = inputs.samples <= kOneBlockElements / inputs.clusters;
  // A slice for every warp without a tile of its own.
  const int64_t slices_of_chunk =
      is_small ? plan.slices : smaller(larger<int64_t>(1, kWarps / plan.tiles), plan.slices);
  plan.chunk_rows = slices_of_chunk * kSliceRows;
  plan.chunks = divide_up(plan.slices, slices_of_chunk);
  return plan;
}

SinkhornBytes sinkhorn_forward_bytes(const SinkhornInputs& inputs, const SinkhornPlan& plan, bool has_tolerance) {
  const int64_t accumulator = accumulator_bytes(inputs.type);
  SinkhornBytes bytes{};
  add_problem_bytes(inputs, bytes);
  bytes.field[kSliceSums] = inputs.problems * plan.slices * inputs.clusters * 3 * accumulator;
  bytes.field[kLogSamples] = inputs.problems * inputs.samples * 2 * accumulator;
  bytes.field[kLogClusters] = inputs.problems * 2 * inputs.clusters * 2 * accumulator;
  if (has_tolerance) {
    bytes.field[kErrors] = inputs.problems * plan.tiles * static_cast<int64_t>(sizeof(double));
    bytes.field[kStopTickets] = inputs.problems * static_cast<int64_t>(sizeof(unsigned));
  }
  return bytes;
}

SinkhornBytes sinkhorn_backward_bytes(const SinkhornInputs& inputs, const SinkhornPlan& plan) {
  const int64_t accumulator = accumulator_bytes(inputs.type);
  SinkhornBytes bytes{};
  add_problem_bytes(inputs, bytes);
  bytes.field[kSliceSums] = inputs.problems * plan.slices * inputs.clusters * accumulator;
  bytes.field[kMeans] = inputs.problems * inputs.samples * accumulator;
  bytes.field[kSampleGradient] = inputs.problems * inputs.num_iters * inputs.samples * accumulator;
  bytes.field[kClusterGradient] = inputs.problems * inputs.num_iters * inputs.clusters * accumulator;
  return bytes;
}

cudaError_t launch_sinkhorn_knopp(const SinkhornInputs& inputs, const SinkhornPlan& plan,
                                  const SinkhornWorkspace& workspace, const SinkhornResults& results,
                                  cudaStream_t stream) {
  return for_element_type(inputs.type, [&](auto element) {
    using Element = decltype(element);
    using T = Widened<Element>;
    SinkhornForwardArguments<Element> in{};
    set_problems<Element>(inputs, plan, workspace, in);
    in.partial = field_of<LogSum<T>>(workspace, kSliceSums);
    in.log_u = field_of<Logarithm<T>>(workspace, kLogSamples);
    in.log_v = field_of<Logarithm<T>>(workspace, kLogClusters);
    in.errors = field_of<double>(workspace, kErrors);
    in.ticket = field_of<unsigned>(workspace, kStopTickets);
    in.used = results.used;
    in.assignments = static_cast<Element*>(results.assignments);
    in.potentials = static_cast<T*>(results.potentials);
    in.tolerance = results.tolerance;
    return launch_forward(in, inputs.problems, stream);
  });
}

cudaError_t launch_sinkhorn_knopp_backward(const SinkhornInputs& inputs, const SinkhornPlan& plan,
                                           const SinkhornWorkspace& workspace, const SinkhornGradients& gradients,
                                           cudaStream_t stream) {
  return for_element_type(inputs.type, [&](auto element) {
    using Element = decltype(element);
    using T = Widened<Element>;
    SinkhornBackwardArguments<Element> in{};
    set_problems<Element>(inputs, plan, workspace, in);
    in.grad = static_cast<const Element*>(gradients.grad_assignments);
    in.used = gradients.used;
    in.potentials = static_cast<const T*>(gradients.potentials);
    in.means = field_of<T>(workspace, kMeans);
    in.by_sample = field_of<T>(workspace, kSampleGradient);
    in.by_cluster = field_of<T>(workspace, kClusterGradient);
    in.partial = field_of<T>(workspace, kSliceSums);
    in.grad_scores = static_cast<Element*>(gradients.grad_scores);
    return launch_backward(in, inputs.problems, stream);
  });
}

}  // namespace deepclust

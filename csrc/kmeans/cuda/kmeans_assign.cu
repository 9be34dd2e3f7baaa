// Labels of k-means without any N x K matrix and without atomics.
//
// Assignment: a thread block owns some rows and streams the centroids by, products on tensor cores, of which a row
// keeps the best score and the second best. Products only rule centroids out: where the two differ by more than their
// rounding, the best one's distance is summed over squared differences and that is the result. Other rows, which are
// few unless centroids or rows nearly coincide, are compared with all centroids that way, ties to the lowest index. So
// the precision of the products shows in no result. Inputs are read in place where rows are whole stages of a tile.
#include "kmeans/cuda/kmeans_assign.cuh"

#include <cmath>
#include <cstdint>

#include "core/cuda/arithmetic.cuh"
#include "core/cuda/block.cuh"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"
#include "core/host_device.h"
#include "kmeans/cuda/kmeans_search.cuh"

namespace deepclust {
namespace {

using namespace kmeans;

constexpr int kCopyWarps = 4;
constexpr int kPrepareThreads = 128;

// Copies rows, one to a warp, padded with zeros.
template <class Row>
__global__ void __launch_bounds__(32 * kCopyWarps)
    pad_rows_kernel(const Row* rows /* (count, depth) */, int64_t count, int64_t depth, int64_t row_depth,
                    Row* padded /* (count, row_depth) */) {
  const int64_t i = int64_t{blockIdx.x} * kCopyWarps + threadIdx.x / 32;
  if (i >= count) return;
  for (int64_t k = threadIdx.x % 32; k < row_depth; k += 32) {
    padded[i * row_depth + k] = k < depth ? rows[i * depth + k] : narrow<Row>(0);
  }
}

// Norms, biases and scales of the centroids, one to a quad.
template <class P>
__global__ void __launch_bounds__(kPrepareThreads) measure_centroids_kernel(const KmeansAssignArguments<P> in) {
  using T = typename P::Accumulator;
  const int64_t c = int64_t{blockIdx.x} * (kPrepareThreads / 4) + threadIdx.x / 4;
  if (c >= in.clusters) return;
  const Norm<T> norm = norm_of<T>(in.centroids + c * in.row_depth, in.row_depth, true);
  if (quad_lane() != 0) return;
  in.norms[c] = norm.finite ? smaller(static_cast<T>(norm.value), Limits<T>::kMax) : Limits<T>::kInfinity;
  in.biases[c] = in.cosine ? T(0) : static_cast<T>(norm.value * norm.value / 2);
  in.scales[c] = in.cosine ? static_cast<T>(1 / larger(norm.value, kMinNorm)) : T(1);
}

template <class P, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 16 / kWarps) assign_rows_kernel(const KmeansAssignArguments<P> in) {
  using T = typename P::Accumulator;
  using Row = typename P::Element;
  using Search = ScoreSearch<P, kWarps>;
  using Gemm = typename Search::Gemm;
  DEEPCLUST_DYNAMIC_SHARED(shared);
  const int64_t first_row = int64_t{blockIdx.x} * Gemm::kRows;
  const T largest_norm = largest_of<kWarps>(in.norms, static_cast<int>(in.clusters));
  const bool finite = largest_norm <= Limits<T>::kMax;
  Search search(in);
  if (finite) {
    const TileOperand<P> columns[1] = {{{in.centroids}, in.clusters}};
    const int tiles = static_cast<int>(divide_up(in.clusters, Gemm::kColumns));
    Gemm::run({{in.features}, in.count}, columns, in.row_depth, first_row, 0, tiles, shared, search);
  }
#pragma unroll
  for (int slot = 0; slot < Search::kSlots; ++slot) {
    const int64_t i = first_row + Gemm::row_of(slot);
    const bool present = i < in.count;
    const BestScore<T> best = search.merged(slot);
    Nearest nearest{Limits<double>::kNan, -1};
    const bool open = finite && present && !decide_by_scores(in, i, best, largest_norm, nearest);
    for (unsigned left = __ballot_sync(kWholeWarp, open && quad_lane() == 0); left != 0; left &= left - 1) {
      const int owner = __ffs(left) - 1;
      const Nearest found = decide_by_all(in, __shfl_sync(kWholeWarp, i, owner));
      if (static_cast<int>(threadIdx.x % 32) == owner) nearest = found;
    }
    if (present && quad_lane() == 0) {
      in.labels[i] = nearest.label;
      in.distances[i] = narrow<Row>(distance_of<T>(nearest.value, in.cosine));
    }
  }
}

template <class P, int kWarps>
cudaError_t launch_assign_kernel(const KmeansAssignArguments<P>& in, cudaStream_t stream) {
  using Gemm = typename ScoreSearch<P, kWarps>::Gemm;
  return device::launch(assign_rows_kernel<P, kWarps>, dim3(static_cast<unsigned>(divide_up(in.count, Gemm::kRows))),
                        dim3(32 * kWarps), Gemm::kSharedBytes, stream, in);
}

template <class P>
cudaError_t launch_assign_type(const KmeansAssignInputs& inputs, const KmeansAssignPlan& plan,
                               const KmeansAssignWorkspace& workspace, int64_t* labels, void* distances,
                               cudaStream_t stream) {
  using Row = typename P::Element;
  using T = typename P::Accumulator;
  const int64_t counts[2] = {inputs.count, inputs.clusters};
  const Row* rows[2] = {static_cast<const Row*>(inputs.features), static_cast<const Row*>(inputs.centroids)};
  for (int which = 0; which < 2; ++which) {
    if (!plan.copies[which]) continue;
    Row* padded = static_cast<Row*>(workspace.field[kFeatureRows + which]);
    const cudaError_t error = device::launch(
        pad_rows_kernel<Row>, dim3(static_cast<unsigned>(divide_up(counts[which], kCopyWarps))), dim3(32 * kCopyWarps),
        0, stream, rows[which], counts[which], inputs.depth, plan.row_depth, padded);
    if (error != cudaSuccess) return error;
    rows[which] = padded;
  }
  KmeansAssignArguments<P> in{};
  in.features = rows[0];
  in.centroids = rows[1];
  in.norms = static_cast<T*>(workspace.field[kCentroidNorms]);
  in.biases = static_cast<T*>(workspace.field[kCentroidBiases]);
  in.scales = static_cast<T*>(workspace.field[kCentroidScales]);
  in.labels = labels;
  in.distances = static_cast<Row*>(distances);
  in.count = inputs.count;
  in.clusters = inputs.clusters;
  in.row_depth = plan.row_depth;
  in.cosine = inputs.cosine;
  const cudaError_t error = device::launch(measure_centroids_kernel<P>,
                                           dim3(static_cast<unsigned>(divide_up(inputs.clusters, kPrepareThreads / 4))),
                                           dim3(kPrepareThreads), 0, stream, in);
  if (error != cudaSuccess) return error;
  return plan.warps == 8 ? launch_assign_kernel<P, 8>(in, stream) : launch_assign_kernel<P, 4>(in, stream);
}

}  // namespace

KmeansAssignPlan plan_kmeans_assign(const KmeansAssignInputs& inputs, int multiprocessors) {
  const int64_t stage_depth = 128 / element_bytes(inputs.type);
  const int64_t row_depth = round_up(inputs.depth, stage_depth);
  const auto copies = [&](const void* rows) {
    return row_depth != inputs.depth || reinterpret_cast<uintptr_t>(rows) % 16 != 0;
  };
  // Large blocks load less for each product, small ones are more.
  const bool many_rows = inputs.count > int64_t{128} * multiprocessors;
  return {row_depth, {copies(inputs.features), copies(inputs.centroids)}, many_rows ? 8 : 4};
}

KmeansAssignBytes kmeans_assign_bytes(const KmeansAssignInputs& inputs, const KmeansAssignPlan& plan) {
  const int64_t row_bytes = plan.row_depth * element_bytes(inputs.type);
  const int64_t accumulator = accumulator_bytes(inputs.type);
  KmeansAssignBytes bytes{};
  bytes.field[kFeatureRows] = plan.copies[0] ? inputs.count * row_bytes : 0;
  bytes.field[kCentroidRows] = plan.copies[1] ? inputs.clusters * row_bytes : 0;
  bytes.field[kCentroidNorms] = inputs.clusters * accumulator;
  bytes.field[kCentroidBiases] = inputs.clusters * accumulator;
  bytes.field[kCentroidScales] = inputs.clusters * accumulator;
  return bytes;
}

cudaError_t launch_kmeans_assign(const KmeansAssignInputs& inputs, const KmeansAssignPlan& plan,
                                 const KmeansAssignWorkspace& workspace, int64_t* labels, void* distances,
                                 cudaStream_t stream) {
  return for_arithmetic<F32AsTf32x3>(inputs.type, [&](auto arithmetic) {
    return launch_assign_type<decltype(arithmetic)>(inputs, plan, workspace, labels, distances, stream);
  });
}

}  // namespace deepclust

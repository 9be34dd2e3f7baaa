// Greedy k-means++ as two launches for every center; nothing waits for the device.
//
// The first one takes over the distances of the center that was chosen last and makes integers of the costs. Each block
// adds up a part of the rows. The last block to end draws the candidates: a warp finds the part in which a running sum
// crosses, then the row. It lays their rows side by side, chunk by chunk, where one address leads to all of a group.
//
// The second one measures the candidates: a quad has two rows, and reads them once for up to eight candidates, whose
// rows come from the caches. Distances are summed over squared differences, by the same code and so to the same bits as
// those of kmeans_assign. It stores for each candidate how far each row would be from its nearest center, and of each
// block the sums of integer costs and the largest cost. The last block chooses the candidate, and its largest cost
// gives the scale of the next integers.
//
// Sums are of integers, so that neither the number of blocks nor the order in which they end shows in the result. The
// rows are read in place where they need neither padding nor widening.
//
// The kernels stand in kmeans_seed_draw.cuh and kmeans_seed_measure.cuh, on what both need in kmeans_seed_rows.cuh.
#include "kmeans/cuda/kmeans_seed.cuh"

#include <cmath>
#include <cstdint>

#include "core/cuda/element_type.cuh"
#include "core/cuda/numeric.cuh"
#include "core/host_device.h"
#include "kmeans/cuda/kmeans_seed_draw.cuh"
#include "kmeans/cuda/kmeans_seed_measure.cuh"

namespace deepclust {
namespace {

using namespace kmeans;

// Parts of the rows that the blocks of a draw add up: long enough to read in a row, few enough for one block's search.
constexpr int64_t kMinPartRows = 512;
constexpr int64_t kMaxParts = 1024;

// Scale times largest cost: a sum of `count` such integers fits int64, and the reference says how many bits that
// leaves.
double span_of(int64_t count) {
  int bits = 0;
  for (int64_t left = count; left != 0; left /= 2) ++bits;
  return std::ldexp(1.0, 62 - bits);
}

// Candidates whose distances a quad sums at once.
template <class T>
int group_of(int64_t count) {
  return sizeof(T) == sizeof(float) && count > 4 ? 8 : 4;
}

template <class T>
cudaError_t launch_measure(const KmeansSeedArguments<T>& in, int64_t blocks, int64_t step, int64_t count,
                           cudaStream_t stream) {
  const auto run = [&](void (*kernel)(KmeansSeedArguments<T>, int64_t, int64_t)) {
    return device::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, in, step, count);
  };
  if constexpr (sizeof(T) == sizeof(float)) {
    if (group_of<T>(count) == 8) {
      return in.cosine ? run(measure_candidates_kernel<T, 8, true>) : run(measure_candidates_kernel<T, 8, false>);
    }
  }
  return in.cosine ? run(measure_candidates_kernel<T, 4, true>) : run(measure_candidates_kernel<T, 4, false>);
}

template <class Row>
cudaError_t launch_type(const KmeansSeedInputs& inputs, const KmeansSeedPlan& plan,
                        const KmeansSeedWorkspace& workspace, int64_t* places, cudaStream_t stream) {
  using T = Widened<Row>;
  const Row* features = static_cast<const Row*>(inputs.features);
  T* const copies = static_cast<T*>(workspace.field[kSeedRows]);
  KmeansSeedArguments<T> in{};
  in.rows = copies;
  if constexpr (sizeof(Row) == sizeof(T)) {
    if (!plan.copies) in.rows = features;
  }
  in.norms = static_cast<T*>(workspace.field[kSeedNorms]);
  in.scales = static_cast<T*>(workspace.field[kSeedScales]);
  in.least = static_cast<T*>(workspace.field[kSeedLeast]);
  in.integers = static_cast<int64_t*>(workspace.field[kSeedIntegers]);
  in.distances = static_cast<T*>(workspace.field[kSeedDistances]);
  in.candidates = static_cast<int64_t*>(workspace.field[kSeedCandidates]);
  in.candidate_rows = static_cast<T*>(workspace.field[kSeedCandidateRows]);
  in.block_sums = static_cast<int64_t*>(workspace.field[kSeedBlockSums]);
  in.block_largest = static_cast<double*>(workspace.field[kSeedBlockLargest]);
  in.part_sums = static_cast<int64_t*>(workspace.field[kSeedPartSums]);
  in.state = static_cast<SeedState*>(workspace.field[kSeedState]);
  in.places = places;
  in.uniform = inputs.uniform;
  in.weights = inputs.weights;
  in.span = span_of(inputs.count);
  in.count = inputs.count;
  in.row_depth = plan.row_depth;
  in.num_candidates = inputs.candidates;
  in.part_rows = plan.part_rows;
  in.cosine = inputs.cosine;

  cudaError_t error = device::memset_async(in.state, 0, sizeof(SeedState), stream);
  if (error != cudaSuccess) return error;
  error = device::launch(prepare_rows_kernel<T, Row>, dim3(static_cast<unsigned>(divide_up(in.count, kQuads))),
                         dim3(kThreads), 0, stream, in, features, inputs.depth, copies);
  for (int64_t step = 0; step < inputs.centers && error == cudaSuccess; ++step) {
    const int64_t count = step == 0 ? 1 : inputs.candidates;
    error = device::launch(draw_candidates_kernel<T>, dim3(static_cast<unsigned>(plan.parts)), dim3(kThreads), 0,
                           stream, in, step, count, group_of<T>(count));
    if (error != cudaSuccess) return error;
    error = launch_measure(in, plan.blocks, step, count, stream);
  }
  return error;
}

}  // namespace

KmeansSeedPlan plan_kmeans_seed(const KmeansSeedInputs& inputs, int multiprocessors) {
  const int64_t chunk = 16 / accumulator_bytes(inputs.type);
  KmeansSeedPlan plan{};
  plan.row_depth = round_up(inputs.depth, chunk);
  const bool widened = element_bytes(inputs.type) < accumulator_bytes(inputs.type);
  const bool aligned = reinterpret_cast<uintptr_t>(inputs.features) % 16 == 0;
  plan.copies = widened || plan.row_depth != inputs.depth || !aligned;
  plan.blocks =
      smaller<int64_t>(divide_up(inputs.count, kTileRows), int64_t{multiprocessors} * kBlocksPerMultiprocessor);
  plan.part_rows = larger(kMinPartRows, divide_up(inputs.count, kMaxParts));
  plan.parts = divide_up(inputs.count, plan.part_rows);
  return plan;
}

KmeansSeedBytes kmeans_seed_bytes(const KmeansSeedInputs& inputs, const KmeansSeedPlan& plan) {
  const int64_t wide = accumulator_bytes(inputs.type), eight = sizeof(int64_t);
  KmeansSeedBytes bytes{};
  bytes.field[kSeedRows] = plan.copies ? inputs.count * plan.row_depth * wide : 0;
  bytes.field[kSeedNorms] = inputs.cosine ? inputs.count * wide : 0;
  bytes.field[kSeedScales] = inputs.cosine ? inputs.count * wide : 0;
  bytes.field[kSeedLeast] = inputs.count * wide;
  bytes.field[kSeedIntegers] = inputs.count * eight;
  bytes.field[kSeedDistances] = inputs.candidates * inputs.count * wide;
  bytes.field[kSeedCandidates] = inputs.candidates * eight;
  const bool is_f64 = inputs.type == ElementType::kF64;
  const int64_t group = is_f64 ? group_of<double>(inputs.candidates) : group_of<float>(inputs.candidates);
  bytes.field[kSeedCandidateRows] = round_up(inputs.candidates, group) * plan.row_depth * wide;
  bytes.field[kSeedBlockSums] = inputs.candidates * plan.blocks * eight;
  bytes.field[kSeedBlockLargest] = inputs.candidates * plan.blocks * eight;
  bytes.field[kSeedPartSums] = plan.parts * eight;
  bytes.field[kSeedState] = sizeof(SeedState);
  return bytes;
}

cudaError_t launch_kmeans_seed(const KmeansSeedInputs& inputs, const KmeansSeedPlan& plan,
                               const KmeansSeedWorkspace& workspace, int64_t* places, cudaStream_t stream) {
  return for_element_type(inputs.type, [&](auto element) {
    return launch_type<decltype(element)>(inputs, plan, workspace, places, stream);
  });
}

}  // namespace deepclust

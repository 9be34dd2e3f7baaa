// Calls every launch function at small and large sizes; recorder.cpp prints what they launch. check_cuda.py fails if a
// kernel never comes up here, so a new op adds its calls.
#include <cstdint>
#include <cstdlib>

#include "contrastive/cuda/fused_contrastive_loss.cuh"
#include "kmeans/cuda/kmeans_assign.cuh"
#include "kmeans/cuda/kmeans_seed.cuh"
#include "mining/cuda/batch_hard_mining.cuh"
#include "mining/cuda/fused_hsd_loss.cuh"
#include "mining/cuda/pair_gradient.cuh"
#include "neighbors/cuda/diffused_neighbor_gather.cuh"
#include "neighbors/cuda/nearest_neighbors.cuh"
#include "pairs/cuda/pair_information.cuh"
#include "sinkhorn/cuda/sinkhorn_knopp.cuh"
#include "views/cuda/augment_views.cuh"

namespace {

using namespace deepclust;

// Host code passes device pointers on and never looks behind them.
unsigned char memory[64];

void require(cudaError_t error) {
  if (error != cudaSuccess) std::exit(1);
}

void mining(int64_t count, int64_t depth) {
  for (const ElementType type : {ElementType::kF32, ElementType::kBf16, ElementType::kF16, ElementType::kF64}) {
    const MiningPlan plan = plan_mining(type, count, depth, 0, count, device::multiprocessor_count());
    const MiningWorkspace workspace{};
    auto* index = reinterpret_cast<int64_t*>(memory);
    MiningOutputs outputs{};
    outputs.positive_index = outputs.negative_index = index;
    require(launch_batch_hard_mining(plan, memory, memory, true, workspace, outputs, nullptr));
    require(launch_fused_hsd_loss(plan, memory, memory, 0.5, true, LossReduction::kMean, workspace, memory, memory,
                                  index, memory, memory, nullptr));
  }
}

void pair_gradient(int64_t count, int64_t depth) {
  for (const ElementType type : {ElementType::kF32, ElementType::kF64, ElementType::kF16, ElementType::kBf16}) {
    PairGradientInputs inputs{};
    inputs.type = type;
    inputs.count = count;
    inputs.depth = depth;
    require(launch_pair_gradient(inputs, memory, memory, memory, memory, nullptr));
  }
}

void contrastive(int64_t count, int64_t depth, int64_t queue, int64_t classes) {
  for (const ElementType type : {ElementType::kF32, ElementType::kF64, ElementType::kF16, ElementType::kBf16}) {
    for (const bool reduced_precision : {false, true}) {
      ContrastiveInputs inputs{};
      inputs.type = type;
      inputs.two_views = queue == 0;
      inputs.batch = count;
      inputs.queue = queue;
      inputs.depth = depth;
      inputs.classes = classes;
      inputs.options = {0.5, 0, 0, 1, 1};
      inputs.normalize = true;
      inputs.reduced_precision = reduced_precision;
      const bool wanted[kContrastiveInputs] = {true, true, classes > 0, classes > 0, queue > 0, queue * classes > 0};
      const ContrastiveWorkspace workspace{};
      require(launch_fused_contrastive_loss(inputs, plan_contrastive_loss(inputs, device::multiprocessor_count()),
                                            workspace, LossReduction::kMean, memory, memory, nullptr));
      ContrastiveGradients gradients{};
      gradients.row_values = memory;
      require(launch_fused_contrastive_loss_backward(
          inputs, plan_contrastive_gradient(inputs, wanted, device::multiprocessor_count()), workspace, gradients,
          nullptr));
    }
  }
}

void neighbors(int64_t queries, int64_t bank_rows, int64_t depth, int k) {
  for (const ElementType type : {ElementType::kF32, ElementType::kF64, ElementType::kF16, ElementType::kBf16}) {
    const NeighborsPlan plan =
        plan_nearest_neighbors(type, queries, bank_rows, depth, k, device::multiprocessor_count());
    const NeighborsWorkspace workspace{};
    require(launch_nearest_neighbors(plan, {}, workspace, memory, nullptr, nullptr));
  }
}

void gather(int64_t walkers, int64_t depth) {
  for (const ElementType type : {ElementType::kF32, ElementType::kF64, ElementType::kF16, ElementType::kBf16}) {
    GatherInputs inputs{};
    inputs.type = type;
    inputs.walkers = walkers;
    inputs.depth = depth;
    inputs.num_samples = inputs.walkers_of_row = 1;
    inputs.width = inputs.limit = 10;
    require(launch_diffused_neighbor_gather(inputs, memory, reinterpret_cast<int64_t*>(memory), memory, nullptr));
    GatherGradientInputs gradient{};
    gradient.type = type;
    gradient.walkers = walkers;
    gradient.depth = depth;
    gradient.num_samples = 1;
    gradient.inverse_norm = memory;
    require(launch_diffused_neighbor_gather_backward(gradient, memory, memory, memory, nullptr));
  }
}

void sinkhorn(int64_t problems, int64_t samples, int64_t clusters) {
  for (const ElementType type : {ElementType::kF32, ElementType::kF64, ElementType::kF16, ElementType::kBf16}) {
    SinkhornInputs inputs{};
    inputs.type = type;
    inputs.problems = problems;
    inputs.samples = samples;
    inputs.clusters = clusters;
    inputs.num_iters = 2;
    inputs.epsilon = 0.05;
    const SinkhornPlan plan = plan_sinkhorn_knopp(inputs);
    const SinkhornWorkspace workspace{};
    require(launch_sinkhorn_knopp(inputs, plan, workspace, {}, nullptr));
    require(launch_sinkhorn_knopp_backward(inputs, plan, workspace, {}, nullptr));
  }
}

void kmeans(int64_t count, int64_t clusters, int64_t depth) {
  for (const ElementType type : {ElementType::kF32, ElementType::kF64, ElementType::kF16, ElementType::kBf16}) {
    const KmeansAssignInputs assign{type, count, clusters, depth, memory, memory, true};
    const KmeansAssignPlan plan = plan_kmeans_assign(assign, device::multiprocessor_count());
    require(launch_kmeans_assign(assign, plan, {}, nullptr, memory, nullptr));
    require(launch_kmeans_update({type, count, clusters, depth, memory, nullptr}, {memory, nullptr}, memory, nullptr,
                                 nullptr));
    for (const bool cosine : {false, true}) {
      // Few steps: each launches the same again.
      const KmeansSeedInputs seed{type, count, depth, 2, clusters == 1 ? 1 : 9, memory, nullptr, nullptr, cosine};
      const KmeansSeedPlan seed_plan = plan_kmeans_seed(seed, device::multiprocessor_count());
      require(launch_kmeans_seed(seed, seed_plan, {}, nullptr, nullptr));
    }
  }
}

void views(int64_t count, int64_t channels, int64_t side) {
  AugmentInputs inputs{};
  inputs.count = count;
  inputs.channels = channels;
  inputs.height = inputs.width = side;
  inputs.num_steps = 1;
  inputs.blur_kernel = 23;
  const AugmentPlan plan = plan_augment_views(inputs, device::multiprocessor_count());
  require(launch_augment_views(inputs, plan, {}, {}, nullptr));
}

void pair_information(int64_t count, int64_t clusters, int64_t depth) {
  for (const ElementType type : {ElementType::kF32, ElementType::kF64, ElementType::kF16, ElementType::kBf16}) {
    // At most two blocks of pairs: others launch the same again.
    const PairPlan plan = plan_pairs(count, clusters, device::multiprocessor_count());
    const int64_t pairs = count < 2 * plan.block_pairs ? count : 2 * plan.block_pairs;
    PairInformationInputs inputs{};
    inputs.type = type;
    inputs.pairs = pairs;
    inputs.clusters = clusters;
    inputs.depth = depth;
    inputs.beta = inputs.temperature = 1;
    PairWorkspace workspace{};
    for (void*& field : workspace.field) field = memory;
    require(launch_pair_information(inputs, plan, workspace, memory, memory, memory, nullptr));
    const PairStatisticsInputs statistics{type, pairs, clusters, depth, memory, memory, 1};
    require(launch_pair_statistics(statistics, plan, workspace, memory, memory, memory, nullptr));
  }
}

}  // namespace

int main() {
  for (const int64_t count : {1, 1000, 100'000, 10'000'000}) {
    for (const int64_t clusters : {1, 10, 1000, 100'000}) sinkhorn(1, count, clusters);
    sinkhorn(count, 256, 128);
    for (const int64_t channels : {1, 3, 64}) {
      for (const int64_t side : {1, 32, 224, 1 << 20}) views(count, channels, side);
    }
    for (const int64_t depth : {1, 128, 2048}) {
      for (const int64_t clusters : {1, 100, 100'000}) {
        kmeans(count, clusters, depth);
        pair_information(count, clusters, depth);
      }
      gather(count, depth);
      mining(count, depth);
      for (const int64_t bank_rows : {0, 1000, 10'000'000}) {
        for (const int k : {1, 256}) neighbors(count, bank_rows, depth, k);
      }
      pair_gradient(count, depth);
      contrastive(count, depth, 0, 0);
      contrastive(count, depth, 65536, 0);
      contrastive(count, depth, 0, 10);
    }
  }
}

// Calls every launch function at small and large sizes; recorder.cpp prints what they launch. check_cuda.py fails if a
// kernel never comes up here, so a new op adds its calls.
#include <cstdint>
#include <cstdlib>

#include "cuda/batch_hard_mining.cuh"
#include "cuda/fused_hsd_loss.cuh"
#include "cuda/pair_gradient.cuh"

namespace {

using namespace deepclust;

// Host code passes device pointers on and never looks behind them.
unsigned char memory[64];

void require(cudaError_t error) {
  if (error != cudaSuccess) std::exit(1);
}

void mining(int64_t count, int64_t depth) {
  for (const MiningType type : {MiningType::kF32, MiningType::kBf16, MiningType::kF16, MiningType::kF64}) {
    const MiningPlan plan = plan_mining(type, count, depth, device::multiprocessor_count());
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

}  // namespace

int main() {
  for (const int64_t count : {1, 1000, 100'000, 10'000'000}) {
    for (const int64_t depth : {1, 128, 2048}) {
      mining(count, depth);
      pair_gradient(count, depth);
    }
  }
}

// Mining does all of it: where the pairs of a row are written, its loss is computed too (batch_hard_mining.cu).
#include "mining/cuda/fused_hsd_loss.cuh"

namespace deepclust {

cudaError_t launch_fused_hsd_loss(const MiningPlan& plan, const void* teacher, const void* student, double temperature,
                                  bool normalize, LossReduction reduction, const MiningWorkspace& workspace, void* loss,
                                  void* stats, int64_t* index, void* slope, void* inverse_norm, cudaStream_t stream) {
  MiningOutputs outputs{};
  outputs.positive_index = index;
  outputs.negative_index = index + plan.count;
  outputs.inverse_norm = inverse_norm;
  outputs.loss = {temperature, reduction, loss, stats, slope};
  return launch_batch_hard_mining(plan, teacher, student, normalize, workspace, outputs, stream);
}

}  // namespace deepclust

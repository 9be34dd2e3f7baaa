// fused_hsd_loss on CUDA: the mining kernel computes the loss of a row while it has its distances. No torch here.
#pragma once

#include "mining/cuda/batch_hard_mining.cuh"

namespace deepclust {

// One launch after the one that prepares the rows. loss is () or, for kNone, (N,) of the input type; stats (5,),
// slope (2, N) and inverse_norm (2, N) are of the accumulation type. N may not be 0.
cudaError_t launch_fused_hsd_loss(const MiningPlan& plan,
                                  const void* teacher,  // (N, D)
                                  const void* student,  // (N, D)
                                  double temperature, bool normalize, LossReduction reduction,
                                  const MiningWorkspace& workspace, void* loss, void* stats,
                                  int64_t* index,  // (2, N)
                                  void* slope, void* inverse_norm, cudaStream_t stream);

}  // namespace deepclust

// diffused_neighbor_gather on CUDA: one step of all walkers, and the gradient. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

struct GatherInputs {
  ElementType type;
  int64_t walkers, depth;     // B * S, D
  int64_t num_samples;        // S
  int64_t walkers_of_row;     // S at the first step, where all walkers of a query stand on it, then 1
  int64_t width, limit;       // candidates of a row, 0: nothing is drawn; how many of them count
  int64_t step;               //
  const void* rows;           // (walkers / walkers_of_row, D)
  const void* bank;           // (M, D)
  const void* cosines;        // (walkers / walkers_of_row, width) input type
  const int64_t* candidates;  // (walkers / walkers_of_row, width) -1 where there is none
  const int64_t* avoided;     // (B,) a candidate that does not count, or null
  const int64_t* previous;    // (B, S) what was drawn last, or null
  double temperature, noise_std;
  int64_t seed;
};

// One launch: draws for every walker, gathers, adds noise and, where inverse_norm is not null, normalizes. At most
// kMaxDrawn candidates.
constexpr int64_t kMaxDrawn = 257;
cudaError_t launch_diffused_neighbor_gather(const GatherInputs& inputs,
                                            void* samples,       // (B, S, D)
                                            int64_t* indices,    // (B, S)
                                            void* inverse_norm,  // (B, S) accumulation type, or null
                                            cudaStream_t stream);

struct GatherGradientInputs {
  ElementType type;
  int64_t walkers, depth, num_samples;
  const void* grad_samples;       // (B, S, D)
  const void* samples;            // (B, S, D) if normalized
  const void* inverse_norm;       // (B, S) accumulation type, null if not normalized
  const int64_t* sorted_indices;  // (B * S,) ascending, null: all -1
  const int64_t* order;           // (B * S,) the walkers in that order, null: as they are
};

// One launch, with normalization two. Adds up the gradients of the walkers of each bank row and of each query whose
// walkers drew nothing, in their order; other rows of the gradients are not written. A gradient that is null is not
// wanted.
cudaError_t launch_diffused_neighbor_gather_backward(const GatherGradientInputs& inputs,
                                                     void* along,       // (B, S) accumulation type, if normalized
                                                     void* grad_query,  // (B, D)
                                                     void* grad_bank,   // (M, D)
                                                     cudaStream_t stream);

}  // namespace deepclust

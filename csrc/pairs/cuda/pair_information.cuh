// pair_information on CUDA: what its kernel reads and writes. No torch here.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

struct PairInformationInputs {
  ElementType type;
  int64_t count;             // of elements, N D, above 0
  const void* features;      // (count,)
  const void* grad_squared;  // (count,) or null: no gradient is wanted but squares
};

// One launch, for the forward pass and the backward pass alike.
cudaError_t launch_pair_information(const PairInformationInputs& inputs,
                                    void* results,  // (count,)
                                    cudaStream_t stream);

}  // namespace deepclust

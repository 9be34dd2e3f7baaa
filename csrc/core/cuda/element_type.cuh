// From the type of the inputs, as launch functions name it, to the type that kernels are compiled for.
#pragma once

#include "core/cuda/device.h"
#include "core/launch_types.h"

namespace deepclust {

// Calls run with an element of the type.
template <class Run>
cudaError_t for_element_type(ElementType type, const Run& run) {
  switch (type) {
    case ElementType::kF32:
      return run(float());
    case ElementType::kF64:
      return run(double());
    case ElementType::kF16:
      return run(__half());
    case ElementType::kBf16:
      return run(__nv_bfloat16());
  }
  return cudaErrorInvalidValue;
}

}  // namespace deepclust

// From the type of the inputs, as launch functions name it, to the arithmetic that their products are compiled for.
#pragma once

#include "core/cuda/tile_gemm.cuh"
#include "core/launch_types.h"

namespace deepclust {

// Calls run with the arithmetic; float32 is multiplied by that which the op chose.
template <class F32, class Run>
auto for_arithmetic(ElementType type, const Run& run) {
  switch (type) {
    case ElementType::kF64:
      return run(F64());
    case ElementType::kF16:
      return run(F16());
    case ElementType::kBf16:
      return run(Bf16());
    case ElementType::kF32:
      break;
  }
  return run(F32());
}

}  // namespace deepclust

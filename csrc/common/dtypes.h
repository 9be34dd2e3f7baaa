// The accumulation type: float64 for float64, float32 for everything else.
#pragma once

#include <ATen/core/Tensor.h>

namespace deepclust {

// The tensor itself where it is contiguous and of the accumulation type already.
inline at::Tensor to_accumulation(const at::Tensor& tensor) {
  return tensor.to(tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

}  // namespace deepclust

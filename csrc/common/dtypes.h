// The accumulation type: float64 for float64, float32 for everything else.
#pragma once

#include <ATen/core/Tensor.h>

namespace deepclust {

inline at::TensorOptions accumulation_options(const at::Tensor& tensor) {
  return tensor.options().dtype(tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

// The tensor itself where it is contiguous and of the accumulation type already.
inline at::Tensor to_accumulation(const at::Tensor& tensor) {
  return tensor.to(accumulation_options(tensor).dtype()).contiguous();
}

}  // namespace deepclust

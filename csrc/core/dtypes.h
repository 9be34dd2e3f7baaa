// The accumulation type: float64 for float64, float32 for everything else.
#pragma once

#include <ATen/core/Tensor.h>

namespace deepclust {

// The tensor itself where it is contiguous and of the accumulation type already.
inline at::Tensor to_accumulation(const at::Tensor& tensor) {
  const bool is_wide = tensor.scalar_type() == at::kDouble || tensor.scalar_type() == at::kFloat;
  if (is_wide && tensor.is_contiguous()) return tensor;  // without the dispatcher, which small calls would feel
  return (is_wide ? tensor : tensor.to(at::kFloat)).contiguous();
}

inline at::Tensor to_dtype(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

}  // namespace deepclust

// Torch's types and reductions as the launch functions name them.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "core/launch_types.h"

namespace deepclust {

inline at::ScalarType accumulation_dtype(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline ElementType element_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return ElementType::kF64;
    case at::kHalf:
      return ElementType::kF16;
    case at::kBFloat16:
      return ElementType::kBf16;
    default:
      return ElementType::kF32;
  }
}

inline LossReduction loss_reduction(std::string_view name) {
  return name == "none" ? LossReduction::kNone : name == "mean" ? LossReduction::kMean : LossReduction::kSum;
}

}  // namespace deepclust

// Choices that the launch functions of several ops take.
#pragma once

#include <cstdint>

namespace deepclust {

enum class ElementType { kF32, kF64, kF16, kBf16 };  // of the inputs

// Bytes of an element, and of what sums over elements are kept in.
constexpr int64_t element_bytes(ElementType type) {
  return type == ElementType::kF64 ? sizeof(double) : type == ElementType::kF32 ? sizeof(float) : 2;
}
constexpr int64_t accumulator_bytes(ElementType type) {
  return type == ElementType::kF64 ? sizeof(double) : sizeof(float);
}

enum class LossReduction { kNone, kMean, kSum };

}  // namespace deepclust

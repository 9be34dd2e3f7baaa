// Choices that the launch functions of several ops take.
#pragma once

namespace deepclust {

enum class ElementType { kF32, kF64, kF16, kBf16 };  // of the inputs

enum class LossReduction { kNone, kMean, kSum };

}  // namespace deepclust

// Scratch memory of the CPU kernels.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <utility>

namespace deepclust {

// One allocation, handed out piece by piece, each on its own cache lines.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t elements)
      : memory_(c10::GetCPUAllocator()->allocate(elements * sizeof(T))), next_(static_cast<T*>(memory_.get())) {}

  static constexpr int64_t size_of(int64_t elements) { return (elements + 15) / 16 * 16; }
  T* take(int64_t elements) { return std::exchange(next_, next_ + size_of(elements)); }

 private:
  at::DataPtr memory_;
  T* next_;
};

}  // namespace deepclust

// Scratch memory of the CPU kernels.
#pragma once

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <utility>

#include "core/host_device.h"

namespace deepclust {

// One allocation, handed out piece by piece, each on its own cache lines.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t elements)
      : memory_(c10::GetCPUAllocator()->allocate(elements * sizeof(T))),
        next_(static_cast<T*>(memory_.get())),
        end_(next_ + elements) {}

  static constexpr int64_t size_of(int64_t elements) { return round_up(elements, 16); }

  T* take(int64_t elements) {
#if defined(__SANITIZE_ADDRESS__)  // AddressSanitizer sees the end of the allocation, not that a piece reaches past it
    TORCH_INTERNAL_ASSERT(elements <= end_ - next_, "scratch: ", elements, " elements of ", end_ - next_, " left");
#endif
    return std::exchange(next_, next_ + size_of(elements));
  }

 private:
  at::DataPtr memory_;
  T *next_, *end_;
};

}  // namespace deepclust

// What the torch side of the CUDA ops needs of its surroundings: device guard, current stream, launch check and scratch
// memory. With DEEPCLUST_EMULATED the ops serve CPU tensors instead.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#if defined(DEEPCLUST_EMULATED)
#include <driver_types.h>

#include "op_scope.h"
#define DEEPCLUST_CUDA_KEY CPU
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define DEEPCLUST_CUDA_KEY CUDA
#endif

#include <cstdint>
#include <vector>

namespace deepclust {

// Makes the device of a tensor the current one and names its current stream.
class DeviceScope {
 public:
#if defined(DEEPCLUST_EMULATED)
  explicit DeviceScope(const at::Tensor&) { emulator::begin_op(); }
  ~DeviceScope() { emulator::end_op(); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  cudaStream_t stream() const { return nullptr; }
#else
  explicit DeviceScope(const at::Tensor& tensor) : guard_(tensor.device()) {}
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(); }

 private:
  c10::cuda::CUDAGuard guard_;
#endif
};

inline void check_launch(cudaError_t error) {
#if defined(DEEPCLUST_EMULATED)
  TORCH_CHECK(error == cudaSuccess, "the emulated device refused a launch: error ", static_cast<int>(error));
#else
  C10_CUDA_CHECK(error);
#endif
}

// Pieces of device memory for one op, from torch's allocator; alive as long as the object, which on a stream is enough.
class DeviceMemory {
 public:
  // One allocation, cut into pieces that start on their own 256 bytes; a piece of 0 bytes is null.
  DeviceMemory(const int64_t* bytes, int count, const at::TensorOptions& options) {
    const at::TensorOptions raw = options.dtype(at::kByte);
#if defined(DEEPCLUST_EMULATED)
    for (int i = 0; i < count; ++i) {  // apart, so that the checker knows where each ends
      memory_.push_back(at::empty({bytes[i]}, raw));
      pieces_.push_back(bytes[i] > 0 ? memory_.back().mutable_data_ptr() : nullptr);
    }
#else
    int64_t total = 0;
    for (int i = 0; i < count; ++i) total += round_up(bytes[i]);
    memory_.push_back(at::empty({total}, raw));
    auto* next = static_cast<unsigned char*>(memory_.back().mutable_data_ptr());
    for (int i = 0; i < count; ++i) {
      pieces_.push_back(bytes[i] > 0 ? next : nullptr);
      next += round_up(bytes[i]);
    }
#endif
  }

  void* operator[](int i) const { return pieces_[i]; }

 private:
  static int64_t round_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

  std::vector<at::Tensor> memory_;
  std::vector<void*> pieces_;
};

}  // namespace deepclust

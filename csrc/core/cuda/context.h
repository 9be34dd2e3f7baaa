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

#include "core/host_device.h"

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

// Device memory for one op from torch's allocator, cut into the fields of a workspace. Alive as long as the object,
// which on a stream is enough.
template <class Workspace>
class DeviceMemory {
 public:
  // One allocation, cut into fields that start on their own 256 bytes; a field of 0 bytes is null.
  template <class Bytes>
  DeviceMemory(const Bytes& bytes /* of every field, in order */, const at::TensorOptions& options) {
    constexpr size_t kFields = sizeof(bytes.field) / sizeof(bytes.field[0]);
    static_assert(sizeof(Workspace) == kFields * sizeof(void*), "a workspace has a field for each number of bytes");
    const at::TensorOptions raw = options.dtype(at::kByte);
#if defined(DEEPCLUST_EMULATED)
    for (size_t i = 0; i < kFields; ++i) {  // apart, so that the checker knows where each ends
      memory_.push_back(at::empty({bytes.field[i]}, raw));
      workspace_.field[i] = bytes.field[i] > 0 ? memory_.back().mutable_data_ptr() : nullptr;
    }
#else
    int64_t total = 0;
    for (const int64_t size : bytes.field) total += round_up(size, kAlignment);
    memory_.push_back(at::empty({total}, raw));
    auto* next = static_cast<unsigned char*>(memory_.back().mutable_data_ptr());
    for (size_t i = 0; i < kFields; ++i) {
      workspace_.field[i] = bytes.field[i] > 0 ? next : nullptr;
      next += round_up(bytes.field[i], kAlignment);
    }
#endif
  }

  const Workspace& workspace() const { return workspace_; }

 private:
  static constexpr int64_t kAlignment = 256;

  std::vector<at::Tensor> memory_;
  Workspace workspace_;
};

}  // namespace deepclust

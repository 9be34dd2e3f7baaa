// An array in device memory: cudaMalloc on a GPU; on the emulated device, host memory that its checker knows.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "core/cuda/device.h"
#ifdef DEEPCLUST_EMULATED
#include "emulator.h"
#endif

namespace conformance {

inline void require_success(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("CUDA error " + std::to_string(static_cast<int>(error)));
}

#ifdef DEEPCLUST_EMULATED

inline void* device_allocate(size_t bytes, bool initialized, const char* name) {
  void* pointer = nullptr;
  if (posix_memalign(&pointer, 256, bytes) != 0) throw std::bad_alloc();  // aligned as by cudaMalloc
  std::memset(pointer, 0xff, bytes);  // NaN, so that plain builds notice unwritten results
  deepclust::emulator::register_buffer(pointer, bytes, initialized, name);
  return pointer;
}

inline void device_free(void* pointer) {
  deepclust::emulator::unregister_buffer(pointer);
  std::free(pointer);
}

inline void copy_to_device(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
inline void copy_to_host(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }

#else

inline void* device_allocate(size_t bytes, bool, const char*) {
  void* pointer = nullptr;
  require_success(cudaMalloc(&pointer, bytes));
  return pointer;
}

inline void device_free(void* pointer) { cudaFree(pointer); }

inline void copy_to_device(void* device, const void* host, size_t bytes) {
  require_success(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
}

inline void copy_to_host(void* host, const void* device, size_t bytes) {
  require_success(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}

#endif

template <class T>
class DeviceBuffer {
 public:
  // Contents are undefined: the emulated device reports whoever reads them before writing.
  // A template, lest it take the braces of a list of values.
  template <class Count, class = std::enable_if_t<std::is_integral<Count>::value>>
  DeviceBuffer(Count count, const char* name)
      : count_(static_cast<size_t>(count)),
        pointer_(static_cast<T*>(device_allocate(count_ * sizeof(T), false, name))) {}
  DeviceBuffer(const std::vector<T>& values, const char* name)
      : count_(values.size()), pointer_(static_cast<T*>(device_allocate(count_ * sizeof(T), true, name))) {
    copy_to_device(pointer_, values.data(), count_ * sizeof(T));
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { device_free(pointer_); }

  T* data() const { return pointer_; }

  // Waits for the kernels before it, as every copy on the default stream does.
  std::vector<T> to_host() const {
    std::vector<T> values(count_);
    copy_to_host(values.data(), pointer_, count_ * sizeof(T));
    return values;
  }

 private:
  size_t count_;
  T* pointer_;
};

}  // namespace conformance

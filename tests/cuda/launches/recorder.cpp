// A CUDA runtime without a device: it accepts every call and prints each launch as
//     kernel (mangled)  grid x y z  threads  dynamic shared bytes
// so that check_cuda.py sees the launch code's own decisions, at sizes that only a large GPU could run.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <map>
#include <string>

namespace {

constexpr int kMultiprocessors = 132;

std::map<const void*, std::string>& kernel_names() {
  static std::map<const void*, std::string> names;
  return names;
}

}  // namespace

extern "C" {

// What nvcc's generated host code calls when the program starts, and the kernels' host-side stubs.

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* host_function, char*, const char* device_name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  kernel_names()[host_function] = device_name;
}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorNotSupported; }

// What device.h calls.

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = kMultiprocessors;
  return attribute == cudaDevAttrMultiProcessorCount ? cudaSuccess : cudaErrorNotSupported;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t shared_bytes, cudaStream_t) {
  std::printf("%s %u %u %u %u %zu\n", kernel_names().at(kernel).c_str(), grid.x, grid.y, grid.z,
              block.x * block.y * block.z, shared_bytes);
  return cudaSuccess;
}

}  // extern "C"

// The only door through which kernel code sees CUDA. nvcc compiles thin aliases, each PTX wrapper one instruction;
// with DEEPCLUST_EMULATED g++ compiles the same names for the emulated device of tests/cuda/emulator.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(DEEPCLUST_EMULATED)
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math_constants.h>
#include <mma.h>

#include <utility>

// Static shared memory: DEEPCLUST_SHARED(float, tile, [32][33]) or DEEPCLUST_SHARED(bool, last).
#define DEEPCLUST_SHARED(T, name, ...) __shared__ T name __VA_ARGS__
// The launch's dynamic shared memory as `unsigned char* name`; take its arrays by device::shared_array.
#define DEEPCLUST_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

namespace deepclust::device {

constexpr size_t kSharedRedzone = 0;

// Launches a kernel; the arguments convert to the kernel's parameter types.
template <class... P, class... A>
[[nodiscard]] cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                                 A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {  // more than every device grants unasked
    const cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  const auto run = [&](P... values) {
    void* pointers[] = {static_cast<void*>(&values)..., nullptr};
    return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
  };
  return run(std::forward<A>(arguments)...);
}

[[nodiscard]] inline cudaError_t memset_async(void* target, int value, size_t bytes, cudaStream_t stream) {
  return cudaMemsetAsync(target, value, bytes, stream);
}

// Multiprocessors of the current device; 1 where CUDA does not answer, so that grids stay valid until the launch says
// why.
inline int multiprocessor_count() {
  int device = 0;
  int count = 1;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  }
  return count;
}

#if defined(__CUDACC__)  // not for csrc/cuda/torch, which the host compiler compiles

template <class T>
__device__ __forceinline__ T* shared_array(unsigned char* base, size_t offset, size_t /*count*/) {
  return reinterpret_cast<T*>(base + offset);
}

// __syncthreads() after which nobody reads what [values, values + count) held: say it at the end of a tile step, and
// the emulator finds reads of the last tile's data.
template <class T>
__device__ __forceinline__ void sync_forget(T* /*values*/, size_t /*count*/) {
  __syncthreads();
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes from global to shared memory; the bytes past src_bytes become zero, and 0 never touches the source.
__device__ __forceinline__ void cp_async16(void* shared_dst, const void* global_src, int src_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared_dst)), "l"(global_src),
               "r"(src_bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most the N newest groups of this thread are in flight; other threads see the data after a barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// Loads four 8x8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// d += a * b of one warp; which lane holds which element is PTX's law.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rounds to the 10 explicit mantissa bits of tf32, ties away from zero; the result is the bits of a float.
__device__ __forceinline__ uint32_t float_to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return bits;
}

#endif  // __CUDACC__

}  // namespace deepclust::device
#endif

namespace deepclust::device {

// Lays out count elements of T at offset of the dynamic shared memory; returns the next free offset. Host and device.
template <class T>
__host__ __device__ constexpr size_t shared_next(size_t offset, size_t count) {
  return (offset + count * sizeof(T) + kSharedRedzone + 127) / 128 * 128;
}

}  // namespace deepclust::device

// CUDA's names for g++: csrc/core/cuda/device.h includes this file in place of the CUDA headers when DEEPCLUST_EMULATED
// is set.
//
// Compile kernels with -fno-strict-aliasing (nvcc tolerates punning through pointers) and -Wno-unknown-pragmas
// (unroll). For the check build add -O1 -g -fsanitize=thread,alignment --param=tsan-instrument-func-entry-exit=0 and
// link hooks.cpp, which stands in for libtsan and libubsan: every access of kernel code to memory then reaches the
// checker. -fsanitize=alignment finds misaligned accesses. With -std=c++20 the emulator also tells barriers on one
// source line apart. The compiler may store a struct by parts and load it whole: structs in shared or global memory
// have no padding, which nobody would have written.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <math_constants.h>
#include <vector_functions.h>

#include <cstring>
#include <type_traits>
#include <utility>

#include "runtime.h"

// Shared memory that the emulator does not know could be neither checked nor filled anew for each block.
#undef __shared__
#define __shared__ static_assert(false, "use DEEPCLUST_SHARED or DEEPCLUST_DYNAMIC_SHARED");
#define __launch_bounds__(...)

// Code of the emulator that is compiled with a kernel but must not be checked as if it were part of it.
#define DEEPCLUST_UNCHECKED __attribute__((no_sanitize("thread"), noinline))

// Last parameter of whatever a message or a rule must place in kernel code: where the call stands.
#define DEEPCLUST_AT deepclust::emulator::Location at = deepclust::emulator::Location::current()

constexpr int warpSize = 32;

namespace deepclust::emulator {

template <class T>
struct Identity {
  using type = T;
};
template <class T>
using Same = typename Identity<T>::type;  // keeps a parameter out of template argument deduction

template <class T, class... Choice>
constexpr bool kOneOf = (std::is_same_v<T, Choice> || ...);

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
uint64_t to_word(T value) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8),
                "not a type that warps exchange");
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(value));
  return word;
}

template <class T>
T shuffle_value(const char* name, uint32_t mask, T value, int lane, bool in_range, Location at) {
  const uint64_t word = shuffle(name, mask, to_word(value), in_range ? lane : lane_id(), at);
  T result;
  memcpy(static_cast<void*>(&result), &word, sizeof(result));
  return result;
}

// Device integers wrap around.
template <class T>
T wrapping_sum(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return a + b;
  }
}

// Applies `update` to *target as one atomic, relaxed operation and returns the old value.
template <class T, class Update>
DEEPCLUST_UNCHECKED T atomic_update(T* target, Update update, Location at) {
  check_access(target, sizeof(T), Access::kAtomic, at);
  const T old = *target;
  *target = update(old);
  return old;
}

}  // namespace deepclust::emulator

// ---- Barriers and fences
inline void __syncthreads(DEEPCLUST_AT) { deepclust::emulator::block_barrier("__syncthreads", false, at); }
inline int __syncthreads_count(int predicate, DEEPCLUST_AT) {
  return deepclust::emulator::block_barrier("__syncthreads_count", predicate != 0, at);
}
inline int __syncthreads_or(int predicate, DEEPCLUST_AT) {
  return deepclust::emulator::block_barrier("__syncthreads_or", predicate != 0, at) != 0;
}
inline int __syncthreads_and(int predicate, DEEPCLUST_AT) {
  return deepclust::emulator::block_barrier("__syncthreads_and", predicate == 0, at) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, DEEPCLUST_AT) { deepclust::emulator::sync_warp(mask, at); }
inline void __threadfence() { deepclust::emulator::thread_fence(); }
inline void __threadfence_block() {}  // publishes nothing to other blocks, and within the block barriers order memory

// ---- Warp shuffles, votes, matches and reductions
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, DEEPCLUST_AT) {
  const int lane = (deepclust::emulator::lane_id() & ~(width - 1)) | (source & (width - 1));
  return deepclust::emulator::shuffle_value("__shfl_sync", mask, value, lane, true, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, DEEPCLUST_AT) {
  const int self = deepclust::emulator::lane_id();
  const int lane = self ^ flip;
  return deepclust::emulator::shuffle_value("__shfl_xor_sync", mask, value, lane, lane <= (self | (width - 1)), at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, DEEPCLUST_AT) {
  const int self = deepclust::emulator::lane_id();
  const int lane = self + static_cast<int>(delta);
  return deepclust::emulator::shuffle_value("__shfl_down_sync", mask, value, lane, lane <= (self | (width - 1)), at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, DEEPCLUST_AT) {
  const int self = deepclust::emulator::lane_id();
  const int lane = self - static_cast<int>(delta);
  return deepclust::emulator::shuffle_value("__shfl_up_sync", mask, value, lane, lane >= (self & ~(width - 1)), at);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, DEEPCLUST_AT) {
  return deepclust::emulator::ballot("__ballot_sync", mask, predicate != 0, at);
}
inline int __any_sync(unsigned mask, int predicate, DEEPCLUST_AT) {
  return deepclust::emulator::ballot("__any_sync", mask, predicate != 0, at) != 0;
}
inline int __all_sync(unsigned mask, int predicate, DEEPCLUST_AT) {
  return deepclust::emulator::ballot("__all_sync", mask, predicate != 0, at) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, DEEPCLUST_AT) {
  return deepclust::emulator::match_any(mask, deepclust::emulator::to_word(value), at);
}

namespace deepclust::emulator {
template <class T>
T reduce_value(const char* name, uint32_t mask, T value, Reduction if_signed, Reduction if_unsigned, Location at) {
  static_assert(kOneOf<T, int, unsigned>, "warp reductions take int or unsigned");
  const Reduction reduction = std::is_signed_v<T> ? if_signed : if_unsigned;
  return static_cast<T>(reduce(name, mask, static_cast<uint32_t>(value), reduction, at));
}
}  // namespace deepclust::emulator

#define DEEPCLUST_DEFINE_REDUCE(name, if_signed, if_unsigned)                                               \
  template <class T>                                                                                        \
  T name(unsigned mask, T value, DEEPCLUST_AT) {                                                            \
    return deepclust::emulator::reduce_value(#name, mask, value, deepclust::emulator::Reduction::if_signed, \
                                             deepclust::emulator::Reduction::if_unsigned, at);              \
  }
DEEPCLUST_DEFINE_REDUCE(__reduce_add_sync, kAdd, kAdd)
DEEPCLUST_DEFINE_REDUCE(__reduce_min_sync, kMinSigned, kMinUnsigned)
DEEPCLUST_DEFINE_REDUCE(__reduce_max_sync, kMaxSigned, kMaxUnsigned)
DEEPCLUST_DEFINE_REDUCE(__reduce_and_sync, kAnd, kAnd)
DEEPCLUST_DEFINE_REDUCE(__reduce_or_sync, kOr, kOr)
DEEPCLUST_DEFINE_REDUCE(__reduce_xor_sync, kXor, kXor)
#undef DEEPCLUST_DEFINE_REDUCE

// ---- Atomics: relaxed, and for the types that CUDA has them for
#define DEEPCLUST_DEFINE_ATOMIC(name, result, ...)                                                            \
  template <class T>                                                                                          \
  T name(T* target, deepclust::emulator::Same<T> value, DEEPCLUST_AT) {                                       \
    static_assert(deepclust::emulator::kOneOf<T, __VA_ARGS__>, "CUDA has no " #name " for this type");        \
    return deepclust::emulator::atomic_update(target, [value](T old) { return static_cast<T>(result); }, at); \
  }
DEEPCLUST_DEFINE_ATOMIC(atomicAdd, deepclust::emulator::wrapping_sum(old, value), int, unsigned, unsigned long long,
                        float, double)
DEEPCLUST_DEFINE_ATOMIC(atomicMax, old < value ? value : old, int, unsigned, long long, unsigned long long)
DEEPCLUST_DEFINE_ATOMIC(atomicMin, value < old ? value : old, int, unsigned, long long, unsigned long long)
DEEPCLUST_DEFINE_ATOMIC(atomicAnd, (old & value), int, unsigned, unsigned long long)
DEEPCLUST_DEFINE_ATOMIC(atomicOr, (old | value), int, unsigned, unsigned long long)
DEEPCLUST_DEFINE_ATOMIC(atomicInc, old >= value ? 0 : old + 1, unsigned)
#undef DEEPCLUST_DEFINE_ATOMIC
template <class T>
T atomicExch(T* target, deepclust::emulator::Same<T> value, DEEPCLUST_AT) {
  static_assert(deepclust::emulator::kOneOf<T, int, unsigned, unsigned long long, float>,
                "CUDA has no such atomicExch");
  return deepclust::emulator::atomic_update(target, [value](T) { return value; }, at);
}
template <class T>
T atomicCAS(T* target, deepclust::emulator::Same<T> expected, deepclust::emulator::Same<T> value, DEEPCLUST_AT) {
  static_assert(deepclust::emulator::kOneOf<T, int, unsigned, unsigned long long>, "CUDA has no such atomicCAS");
  return deepclust::emulator::atomic_update(
      target, [expected, value](T old) { return old == expected ? value : old; }, at);
}

// ---- Arithmetic and bits. Device results may differ in the last bits: compare with derived tolerances.
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fmul_rn(float x, float y) { return x * y; }  // never contracted: one statement of its own
inline double __dmul_rn(double x, double y) { return x * y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline int __float_as_int(float x) { return deepclust::emulator::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return deepclust::emulator::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return deepclust::emulator::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return deepclust::emulator::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return deepclust::emulator::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return deepclust::emulator::bit_cast<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1u) << (31 - bit);
  return reversed;
}
template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// ---- What csrc/core/cuda/device.h promises, where it is explained
#define DEEPCLUST_SHARED(T, name, ...)                                                             \
  using name##_shared_type = T __VA_ARGS__;                                                        \
  static deepclust::emulator::StaticShared name##_shared_variable;                                 \
  name##_shared_type& name = *static_cast<name##_shared_type*>(deepclust::emulator::static_shared( \
      name##_shared_variable, sizeof(name##_shared_type), alignof(name##_shared_type), #name))
#define DEEPCLUST_DYNAMIC_SHARED(name) unsigned char* name = deepclust::emulator::dynamic_shared()

namespace deepclust::device {

constexpr size_t kSharedRedzone = 128;  // unowned bytes after each array, so that a write past its end is seen

template <class... P, class... A>
[[nodiscard]] cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                                 A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
  const auto run = [&](P... values) {
    const auto call = [&]() __attribute__((no_sanitize("thread"))) { kernel(values...); };
    return emulator::launch_grid([](const void* c)
                                     __attribute__((no_sanitize("thread"))) { (*static_cast<decltype(call)*>(c))(); },
                                 &call, grid, block, shared_bytes);
  };
  return run(std::forward<A>(arguments)...);
}

[[nodiscard]] inline cudaError_t memset_async(void* target, int value, size_t bytes, cudaStream_t) {
  return emulator::fill_memory(target, value, bytes);
}

inline int multiprocessor_count() { return emulator::config().multiprocessors; }

template <class T>
T* shared_array(unsigned char* base, size_t offset, size_t count, DEEPCLUST_AT) {
  emulator::open_shared(base + offset, count * sizeof(T), at);
  return reinterpret_cast<T*>(base + offset);
}

template <class T>
void sync_forget(T* values, size_t count, DEEPCLUST_AT) {
  emulator::block_barrier_forget(values, count * sizeof(T), at);
}

void cp_async16(void* shared_dst, const void* global_src, int src_bytes, DEEPCLUST_AT);
void cp_async_commit();
void cp_async_wait_groups(int in_flight);
template <int N>
void cp_async_wait() {
  cp_async_wait_groups(N);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, DEEPCLUST_AT);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, DEEPCLUST_AT);
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, DEEPCLUST_AT);
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, DEEPCLUST_AT);
uint32_t float_to_tf32(float value);

}  // namespace deepclust::device

#include "warp_matrix.h"

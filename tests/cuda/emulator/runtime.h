// The emulated device behind the CUDA names of emulator.h: one OS thread runs the blocks of a launch one after another,
// and every CUDA thread of a block is a fiber.
#pragma once

#include <driver_types.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#if __cplusplus >= 202002L
#include <source_location>
#endif

// CUDA's built-in variables: set whenever a thread is resumed.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace deepclust::emulator {

// What kernel code did wrong. Thrown by the launch; the next launch finds a working device.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Order in which the runnable threads of a block, and the blocks of a grid, are taken.
enum class Schedule { kForward, kReverse, kRandom };

// When cp.async copies: as late as its wait allows, at once, or either at random.
enum class CpAsync { kLate, kEarly, kRandom };

struct Config {
  Config();  // reads DEEPCLUST_EMULATOR_SCHEDULE, DEEPCLUST_EMULATOR_SEED and DEEPCLUST_EMULATOR_CP_ASYNC

  Schedule schedule = Schedule::kForward;
  uint64_t seed = 1;
  CpAsync cp_async = CpAsync::kLate;
  int multiprocessors = 3;
  size_t max_shared_bytes = 99 * 1024;  // what sm_86, of the supported devices the least, grants; redzones included
  bool check;                           // memory accesses reach the checker: hooks.cpp is linked
};
Config& config();

// A place in kernel code. Under C++20 the column tells two calls on one line apart.
struct Location {
  const char* file;
  int line;
  int column;

#if __cplusplus >= 202002L
  static constexpr Location current(std::source_location at = std::source_location::current()) {
    return {at.file_name(), static_cast<int>(at.line()), static_cast<int>(at.column())};
  }
#else
  static constexpr Location current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line, 0};
  }
#endif
};

// Ends the launch with an Error; from a fiber it does not unwind, since device code has no destructors to run.
[[noreturn]] void fail(Location at, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- Memory that kernels may touch; without the check build these do nothing. The checker's own memory for a buffer
// grows with what kernels touch of it. A buffer that is not initialized is filled with NaN; what the host then writes
// to it counts as initialized.
void register_buffer(const void* pointer, size_t bytes, bool initialized, const char* name);
void unregister_buffer(const void* pointer);
void require_buffer(const void* pointer, size_t bytes, const char* by);  // throws Error if no buffer holds the range

// ---- Launch
using KernelCall = void (*)(const void* arguments);
cudaError_t launch_grid(KernelCall call, const void* arguments, dim3 grid, dim3 block, size_t shared_bytes);
cudaError_t fill_memory(void* target, int value, size_t bytes);

// ---- Barriers of the block. `name` tells the kinds apart; returns the number of threads with a true predicate.
int block_barrier(const char* name, bool predicate, Location at);
void block_barrier_forget(const void* pointer, size_t bytes, Location at);
void thread_fence();

// ---- Warp-level functions, as in the CUDA Programming Guide. Only sync_warp orders memory.
int lane_id();
void sync_warp(uint32_t mask, Location at);
uint64_t shuffle(const char* name, uint32_t mask, uint64_t value, int source_lane, Location at);
uint32_t ballot(const char* name, uint32_t mask, bool predicate, Location at);
uint32_t match_any(uint32_t mask, uint64_t value, Location at);
enum class Reduction { kAdd, kMinSigned, kMinUnsigned, kMaxSigned, kMaxUnsigned, kAnd, kOr, kXor };
uint32_t reduce(const char* name, uint32_t mask, uint32_t value, Reduction reduction, Location at);

// ---- Shared memory
struct StaticShared {  // a static shared variable of one kernel: zero, and set at its first use in a launch
  uint64_t launch;
  void* pointer;
};
void* static_shared(StaticShared& variable, size_t bytes, size_t alignment, const char* name);
unsigned char* dynamic_shared();
void open_shared(const void* pointer, size_t bytes, Location at);

// ---- Memory accesses that the compiler does not instrument
enum class Access { kRead, kWrite, kAtomic, kAsyncBegin, kAsyncEnd };  // async: cp.async issued, waited for
void check_access(const void* pointer, size_t bytes, Access access, Location at);

}  // namespace deepclust::emulator

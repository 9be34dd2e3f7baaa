// Finds what a GPU would let pass: accesses out of bounds, misaligned or to memory never written, and data races.
#pragma once

#include <cstddef>
#include <cstdint>

#include "block.h"
#include "runtime.h"
#include "shadow.h"

namespace deepclust::emulator {

// Stack of the running CUDA thread; null outside of kernels and in other threads of the process.
extern thread_local const char* checked_stack __attribute__((tls_model("initial-exec")));

void check_memory(const void* pointer, size_t bytes, Access access, Where where);

// The call that the compiler puts before each access: most go to the thread's own stack.
inline void check_instrumented(const void* pointer, size_t bytes, Access access, const void* return_address) {
  if (checked_stack == nullptr) return;
  if (reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(checked_stack) < Fiber::kStackBytes) return;
  check_memory(pointer, bytes, access, Where(return_address));
}

// The address range of the fibers' stacks, empty before the first launch.
const char* fiber_stacks();

// ---- What happens in the course of a launch. Without the check build all of these do nothing.
void checker_begin_launch();
void checker_begin_block(uint64_t number);
void checker_barrier();
void checker_sync_warp(Thread* lanes, uint32_t mask);
void checker_forget(const void* pointer, size_t bytes);

const char* base_name(const char* path);

}  // namespace deepclust::emulator

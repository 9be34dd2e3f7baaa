// Stacks that can be left and resumed: what the CUDA threads of a block run on.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(DEEPCLUST_EMULATOR_UCONTEXT)
#define DEEPCLUST_EMULATOR_UCONTEXT
#endif
#if defined(DEEPCLUST_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace deepclust::emulator {

// A default-constructed Fiber stands for the stack that calls resume() on another one.
class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 * 1024;

  // Makes the next resume() call `entry`, which must not return, on this stack. What ran there before is abandoned.
  void start(char* stack, void (*entry)());

  // Leaves the running fiber `from`, to be resumed later, and resumes this one.
  void resume(Fiber& from);

 private:
  static void run_entry();
  static void arrive();

  void (*entry_)() = nullptr;
  const void* stack_ = nullptr;  // lowest byte
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
#if defined(DEEPCLUST_EMULATOR_UCONTEXT)
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace deepclust::emulator

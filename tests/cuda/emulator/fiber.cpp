#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace deepclust::emulator {
namespace {
Fiber* running;   // from the moment that a switch to it begins
Fiber* previous;  // where that switch came from
}  // namespace

#if !defined(DEEPCLUST_EMULATOR_UCONTEXT)
// Pushes the registers that a call must preserve, changes stacks and pops them: five times as fast as swapcontext,
// which also asks the kernel for the signal mask.
extern "C" void deepclust_emulator_switch(void** saved_stack_pointer, void* stack_pointer);
asm(R"(
.text
.globl deepclust_emulator_switch
.hidden deepclust_emulator_switch
.type deepclust_emulator_switch, @function
deepclust_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size deepclust_emulator_switch, .-deepclust_emulator_switch
)");
#endif

void Fiber::start(char* stack, void (*entry)()) {
  entry_ = entry;
  stack_ = stack;
  stack_bytes_ = kStackBytes;
  fake_stack_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, kStackBytes);  // an abandoned run leaves its frames' redzones
#endif
#if defined(DEEPCLUST_EMULATOR_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, run_entry, 0);
#else
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // in place of a return address: keeps the stack aligned as at a call, and ends backtraces
  *--top = reinterpret_cast<void*>(run_entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
  stack_pointer_ = top;
#endif
}

void Fiber::resume(Fiber& from) {
  previous = &from;
  running = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, stack_, stack_bytes_);
#endif
#if defined(DEEPCLUST_EMULATOR_UCONTEXT)
  swapcontext(&from.context_, &context_);
#else
  deepclust_emulator_switch(&from.stack_pointer_, stack_pointer_);
#endif
  arrive();
}

void Fiber::run_entry() {
  arrive();
  running->entry_();
}

// The first thing on a stack after a switch to it. Also learns the bounds of the stack left, since nobody told the
// thread's own.
void Fiber::arrive() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(running->fake_stack_, &previous->stack_, &previous->stack_bytes_);
#endif
}

}  // namespace deepclust::emulator

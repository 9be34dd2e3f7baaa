// What g++ calls from kernels compiled with -fsanitize=thread,alignment. Linked, in the check build only, in place of
// libtsan and libubsan.
#include <cstddef>
#include <cstdint>

#include "checker.h"

using deepclust::emulator::Access;
using deepclust::emulator::check_instrumented;
using deepclust::emulator::checked_stack;
using deepclust::emulator::fail;

extern "C" {

extern const char deepclust_emulator_hooks;
const char deepclust_emulator_hooks = 1;  // its presence turns the checker on

// Host code beside the kernels calls these: objects with virtual functions, and static ones made at their first use.
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
unsigned char __tsan_atomic8_load(const volatile unsigned char* pointer, int) {
  return __atomic_load_n(pointer, __ATOMIC_SEQ_CST);
}

#define DEEPCLUST_DEFINE_HOOKS(name, bytes)                                          \
  void __tsan_##name##read##bytes(void* pointer) {                                   \
    check_instrumented(pointer, bytes, Access::kRead, __builtin_return_address(0));  \
  }                                                                                  \
  void __tsan_##name##write##bytes(void* pointer) {                                  \
    check_instrumented(pointer, bytes, Access::kWrite, __builtin_return_address(0)); \
  }
DEEPCLUST_DEFINE_HOOKS(, 1)
DEEPCLUST_DEFINE_HOOKS(, 2)
DEEPCLUST_DEFINE_HOOKS(, 4)
DEEPCLUST_DEFINE_HOOKS(, 8)
DEEPCLUST_DEFINE_HOOKS(, 16)
DEEPCLUST_DEFINE_HOOKS(unaligned_, 2)
DEEPCLUST_DEFINE_HOOKS(unaligned_, 4)
DEEPCLUST_DEFINE_HOOKS(unaligned_, 8)
DEEPCLUST_DEFINE_HOOKS(unaligned_, 16)
#undef DEEPCLUST_DEFINE_HOOKS

void __tsan_read_range(void* pointer, size_t bytes) {
  if (bytes > 0) check_instrumented(pointer, bytes, Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* pointer, size_t bytes) {
  if (bytes > 0) check_instrumented(pointer, bytes, Access::kWrite, __builtin_return_address(0));
}

// The compiler's record of a place where it found a pointer that its type does not allow.
struct UbsanType {
  uint16_t kind;
  uint16_t info;
  char name[1];
};
struct UbsanMismatch {
  const char* file;
  uint32_t line;
  uint32_t column;
  const UbsanType* type;
  unsigned char log_alignment;
  unsigned char access;
};
void __ubsan_handle_type_mismatch_v1(UbsanMismatch* mismatch, uintptr_t address) {
  if (checked_stack == nullptr) return;
  fail({mismatch->file, static_cast<int>(mismatch->line), 0},
       "misaligned access to %s: the address ends in %#zx, the type asks for a multiple of %d", mismatch->type->name,
       static_cast<size_t>(address % 256), 1 << mismatch->log_alignment);
}
}

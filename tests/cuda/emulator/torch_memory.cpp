// Tells the checker about CPU tensors: in the check build, loading the library wraps torch's CPU allocator. Memory that
// torch did not allocate itself, such as a NumPy array's, stays unknown, and a kernel that touches it is reported.
#include <c10/core/Allocator.h>

#include "op_scope.h"
#include "runtime.h"

namespace deepclust::emulator {
namespace {

thread_local int ops_running;

c10::Allocator* wrapped;

class RegisteringAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = wrapped->raw_allocate(bytes);
    register_buffer(data, bytes, ops_running == 0, ops_running > 0 ? "tensor of the op" : "tensor");
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, std::size_t bytes) const override {
    wrapped->copy_data(target, source, bytes);
  }

 private:
  static void release(void* data) {
    unregister_buffer(data);
    wrapped->raw_deallocate(data);
  }
};

[[maybe_unused]] const bool installed = [] {
  if (!config().check) return false;
  wrapped = c10::GetAllocator(c10::DeviceType::CPU);
  static RegisteringAllocator instance;
  c10::SetAllocator(c10::DeviceType::CPU, &instance, UINT8_MAX);
  return true;
}();

}  // namespace

void begin_op() { ++ops_running; }
void end_op() { --ops_running; }

}  // namespace deepclust::emulator

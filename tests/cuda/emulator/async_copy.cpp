// cp.async: a copy that is done at some time before the wait for its group returns.
#include <cstring>

#include "block.h"
#include "checker.h"
#include "emulator.h"

namespace deepclust::emulator {
namespace {

void complete(const AsyncCopy& copy) {
  check_access(copy.target, 16, Access::kAsyncEnd, copy.at);
  std::memcpy(copy.target, copy.source, copy.bytes);
  std::memset(copy.target + copy.bytes, 0, 16 - copy.bytes);
}

bool copies_at_once() {
  if (config().cp_async == CpAsync::kRandom) return random_word() % 2 == 0;
  return config().cp_async == CpAsync::kEarly;
}

}  // namespace
}  // namespace deepclust::emulator

namespace deepclust::device {

using namespace emulator;

void cp_async16(void* shared_dst, const void* global_src, int src_bytes, Location at) {
  if (src_bytes < 0 || src_bytes > 16) fail(at, "cp_async16: src_bytes is %d", src_bytes);
  if (reinterpret_cast<uintptr_t>(shared_dst) % 16 != 0) fail(at, "cp_async16: misaligned target");
  if (!is_shared(shared_dst, 16)) fail(at, "cp_async16: the target is not within an array of shared memory");
  if (src_bytes > 0) {
    if (reinterpret_cast<uintptr_t>(global_src) % 16 != 0) fail(at, "cp_async16: misaligned source");
    if (is_shared(global_src, src_bytes)) fail(at, "cp_async16: the source is shared memory");
    check_access(global_src, src_bytes, Access::kRead, at);
  }
  check_access(shared_dst, 16, Access::kAsyncBegin, at);
  AsyncCopies& copies = current->copies;
  const AsyncCopy copy{static_cast<unsigned char*>(shared_dst), global_src, src_bytes, copies.committed, at};
  if (copies_at_once()) {
    complete(copy);
  } else {
    std::memset(shared_dst, kPoison, 16);
    copies.pending.push_back(copy);
  }
}

void cp_async_commit() { ++current->copies.committed; }

void cp_async_wait_groups(int in_flight) {
  AsyncCopies& copies = current->copies;
  size_t done = 0;
  while (done < copies.pending.size() &&
         static_cast<int64_t>(copies.pending[done].group) + in_flight < static_cast<int64_t>(copies.committed)) {
    complete(copies.pending[done++]);
  }
  copies.pending.erase(copies.pending.begin(), copies.pending.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace deepclust::device

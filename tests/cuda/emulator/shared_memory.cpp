#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "block.h"
#include "checker.h"
#include "shadow.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace deepclust::emulator {
namespace {

constexpr size_t kDynamicBytes = 256 * 1024;
constexpr size_t kStaticBytes = 64 * 1024;  // CUDA allows 48 KB
constexpr size_t kRedzone = 128;

// An array of the running launch. What lies between them belongs to nobody.
struct Range {
  unsigned char* low;
  size_t bytes;
  Buffer* buffer;  // null without the check build

  unsigned char* high() const { return low + bytes; }
};

unsigned char* arena;  // dynamic, then static shared memory
Cell* arena_cells;     // one per byte
size_t dynamic_bytes;  // of the launch
size_t static_bytes;
std::vector<Range> ranges;

void protect(unsigned char* low, size_t bytes, bool open) {
#if defined(__SANITIZE_ADDRESS__)
  if (open) {
    __asan_unpoison_memory_region(low, bytes);
  } else {
    __asan_poison_memory_region(low, bytes);
  }
#else
  (void)low, (void)bytes, (void)open;
#endif
}

void add_range(unsigned char* low, size_t bytes, const char* name) {
  Buffer* buffer = config().check ? add_buffer(low, bytes, false, name, arena_cells + (low - arena)) : nullptr;
  protect(low, bytes, true);
  ranges.push_back({low, bytes, buffer});
}

bool overlap(const Range& a, const Range& b) { return a.low < b.high() && b.low < a.high(); }

// Opens the smallest range that covers a new one and those it overlaps. Their histories meet at one cell per byte,
// where each byte of shared memory has its own place.
void add_joined(Range range, const char* name) {
  bool joins = false;
  for (size_t i = 0; i < ranges.size();) {
    const Range old = ranges[i];
    if (!overlap(old, range)) {
      ++i;
      continue;
    }
    const unsigned char* high = std::max(old.high(), range.high());
    range.low = std::min(old.low, range.low);
    range.bytes = high - range.low;
    if (old.buffer != nullptr) {
      old.buffer->refine_for(old.buffer->low, 1);
      remove_buffer(old.low);
    }
    ranges[i] = ranges.back();
    ranges.pop_back();
    joins = true;
    i = 0;  // the grown range may overlap those passed before
  }
  add_range(range.low, range.bytes, name);
  if (joins && ranges.back().buffer != nullptr) ranges.back().buffer->granule_log = 0;
}

// Poison everywhere in [low, low + bytes), whatever of it is open.
void refill(unsigned char* low, size_t bytes) {
  protect(low, bytes, true);
  std::memset(low, kPoison, bytes);
  protect(low, bytes, false);
}

}  // namespace

void begin_shared(size_t bytes) {
  if (arena == nullptr) {
    void* memory = mmap(nullptr, kDynamicBytes + kStaticBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    arena = static_cast<unsigned char*>(memory);
    if (config().check) arena_cells = reserve_cells(kDynamicBytes + kStaticBytes);
    protect(arena, kDynamicBytes + kStaticBytes, false);
  }
  dynamic_bytes = bytes;
  static_bytes = 0;
}

void end_shared() {
  for (const Range& range : ranges) {
    protect(range.low, range.bytes, false);
    if (range.buffer != nullptr) remove_buffer(range.low);
  }
  ranges.clear();
}

void refill_shared() {
  refill(arena, dynamic_bytes);
  refill(arena + kDynamicBytes, static_bytes);
  for (const Range& range : ranges) protect(range.low, range.bytes, true);
}

bool is_shared(const void* pointer, size_t bytes) {
  const auto* first = static_cast<const unsigned char*>(pointer);
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const Range& range) { return first >= range.low && first + bytes <= range.high(); });
}

unsigned char* dynamic_shared() { return arena; }

void open_shared(const void* pointer, size_t bytes, Location at) {
  auto* low = static_cast<unsigned char*>(const_cast<void*>(pointer));
  if (bytes == 0) return;
  const auto offset = static_cast<size_t>(low - arena);
  if (offset + bytes > dynamic_bytes) {
    fail(at, "shared_array [%zu, %zu) exceeds the launch's %zu bytes of dynamic shared memory", offset, offset + bytes,
         dynamic_bytes);
  }
  for (const Range& range : ranges) {
    if (low >= range.low && low + bytes <= range.high()) return;
  }
  char name[64];
  snprintf(name, sizeof(name), "dynamic shared array at %zu", offset);
  add_joined({low, bytes, nullptr}, name);
}

void* static_shared(StaticShared& variable, size_t bytes, size_t alignment, const char* name) {
  if (variable.launch == current_launch()) return variable.pointer;
  const size_t step = std::max(alignment, kRedzone);
  const size_t offset = (static_bytes + step - 1) / step * step;
  if (offset + bytes > kStaticBytes) fail({}, "%s: too much static shared memory", name);
  static_bytes = offset + bytes + kRedzone;
  variable = {current_launch(), arena + kDynamicBytes + offset};
  add_range(arena + kDynamicBytes + offset, bytes, name);
  std::memset(variable.pointer, kPoison, bytes);
  return variable.pointer;
}

}  // namespace deepclust::emulator

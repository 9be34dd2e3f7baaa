#include "shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>

namespace deepclust::emulator {

std::atomic<uint64_t> registry_changes;

namespace {

using Registry = std::map<uintptr_t, std::unique_ptr<Buffer>>;  // by lowest address

// Host threads may allocate tensors while another one runs a kernel.
std::mutex registry_mutex;
Registry& registry = *new Registry;  // for good: tensors may outlive the library's static objects

bool is_zero(const Cell& cell) {
  return !cell.write.stamp && !cell.read.stamp && !cell.lane_read.stamp && !cell.other_read.stamp;
}

}  // namespace

Buffer::~Buffer() {
  if (cells != nullptr && !shared) munmap(cells, bytes * sizeof(Cell));
}

void Buffer::refine(uintptr_t address, size_t access_bytes) {
  const int fitting = __builtin_ctzll((address - low) | access_bytes);
  if (fitting < granule_log) {
    if (cells != nullptr) {
      const size_t ratio = size_t{1} << (granule_log - fitting);
      const size_t fine_count = ((bytes - 1) >> fitting) + 1;
      for (size_t coarse = ((bytes - 1) >> granule_log) + 1; coarse-- > 0;) {
        const Cell history = cells[coarse];
        for (size_t fine = std::min((coarse + 1) * ratio, fine_count); fine-- > coarse * ratio;) {
          if (!is_zero(history) || !is_zero(cells[fine])) cells[fine] = history;
        }
      }
    }
    granule_log = fitting;
  }
  if (cells == nullptr) cells = reserve_cells(bytes);
}

Cell* reserve_cells(size_t count) {
  void* memory =
      mmap(nullptr, count * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<Cell*>(memory);
}

Buffer* add_buffer(const void* pointer, size_t bytes, bool initialized, const char* name, Cell* shared_cells) {
  auto buffer = std::make_unique<Buffer>();
  buffer->low = reinterpret_cast<uintptr_t>(pointer);
  buffer->bytes = bytes;
  buffer->shared = shared_cells != nullptr;
  buffer->initialized = initialized;
  buffer->name = name;
  buffer->cells = shared_cells;
  Buffer* result = buffer.get();
  const std::lock_guard<std::mutex> lock(registry_mutex);
  registry[result->low] = std::move(buffer);
  ++registry_changes;
  return result;
}

void remove_buffer(const void* pointer) {
  const std::lock_guard<std::mutex> lock(registry_mutex);
  if (registry.erase(reinterpret_cast<uintptr_t>(pointer)) > 0) ++registry_changes;
}

Buffer* find_buffer(uintptr_t address) {
  Buffer* below = find_buffer_below(address);
  return below != nullptr && below->contains(address) ? below : nullptr;
}

Buffer* find_buffer_below(uintptr_t address) {
  const std::lock_guard<std::mutex> lock(registry_mutex);
  const auto above = registry.upper_bound(address);
  return above == registry.begin() ? nullptr : std::prev(above)->second.get();
}

}  // namespace deepclust::emulator

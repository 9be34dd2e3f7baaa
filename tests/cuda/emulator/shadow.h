// What the checker remembers about memory: for every granule of every buffer, who touched it last.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "runtime.h"

namespace deepclust::emulator {

// A place in kernel code: a return address of the instrumentation, or a source line.
class Where {
 public:
  Where() = default;
  explicit Where(const void* return_address) : bits_(reinterpret_cast<uint64_t>(return_address) << 16 | kAddress) {}
  explicit Where(Location at) : bits_(reinterpret_cast<uint64_t>(at.file) << 16 | static_cast<uint16_t>(at.line)) {}

  void describe(char* text, size_t size) const;  // as "file:line"
  size_t hash() const { return bits_ >> 16 ^ bits_; }

 private:
  static constexpr uint64_t kAddress = 0xFFFF;  // in place of a line
  uint64_t bits_ = 0;                           // pointers have 48 bits
};

// When and by whom memory was touched. All zero: never.
class Stamp {
 public:
  static constexpr uint32_t kMaxClock = (1u << 20) - 1;

  Stamp() = default;
  Stamp(uint32_t block, uint32_t clock, uint32_t thread, bool atomic, bool in_flight)
      : bits_(uint64_t{block} << 32 | clock << 12 | thread << 2 | uint32_t{atomic} << 1 | uint32_t{in_flight}) {}
  static Stamp of_host() { return Stamp(0, 1, 0, false, false); }

  explicit operator bool() const { return bits_ != 0; }
  bool operator==(Stamp other) const { return bits_ == other.bits_; }
  uint32_t block() const { return static_cast<uint32_t>(bits_ >> 32); }  // counted over all launches
  uint32_t clock() const { return static_cast<uint32_t>(bits_) >> 12; }
  int thread() const { return static_cast<int>(bits_ >> 2 & 1023); }
  bool atomic() const { return (bits_ & 2) != 0; }
  bool in_flight() const { return (bits_ & 1) != 0; }  // written by a cp.async that was not waited for

 private:
  uint64_t bits_ = 0;
};

struct Event {
  Stamp stamp;
  Where where;
};

// One granule's history: 64 bytes, a cache line.
struct Cell {
  Event write;       // the last
  Event read;        // the last
  Event lane_read;   // the last before `read` by another lane of the same warp
  Event other_read;  // the last before those by another warp or block
};

struct Buffer {
  uintptr_t low;
  size_t bytes;
  bool shared;
  bool initialized;  // as a whole, when registered
  std::string name;
  int granule_log = 4;    // a cell stands for so many bytes; refined when an access is finer
  Cell* cells = nullptr;  // one per granule, with room for one per byte; memory the system gives when it is touched

  ~Buffer();
  bool contains(uintptr_t address) const { return address - low < bytes; }
  // Makes granules fit into an access, so that it never shares one with another access's bytes.
  void refine_for(uintptr_t address, size_t access_bytes) {
    const size_t within_granule = (size_t{1} << granule_log) - 1;
    if ((((address - low) | access_bytes) & within_granule) != 0 || cells == nullptr) refine(address, access_bytes);
  }
  size_t index_of(uintptr_t address) const { return (address - low) >> granule_log; }

 private:
  void refine(uintptr_t address, size_t access_bytes);
};

// Shared memory has its cells at a fixed place, since launches come and go; stale ones carry another block's number.
Buffer* add_buffer(const void* pointer, size_t bytes, bool initialized, const char* name, Cell* shared_cells);
void remove_buffer(const void* pointer);
Buffer* find_buffer(uintptr_t address);         // null if none holds the address
Buffer* find_buffer_below(uintptr_t address);   // the last one that starts at or before it, for messages
extern std::atomic<uint64_t> registry_changes;  // while it stands still, found buffers stay
Cell* reserve_cells(size_t count);              // zero, and no memory until touched

}  // namespace deepclust::emulator

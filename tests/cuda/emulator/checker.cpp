#include "checker.h"

#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <vector>

#include "publication.h"

namespace deepclust::emulator {

thread_local const char* checked_stack;

namespace {

uint32_t blocks_run;                  // over all launches: the number of the running block
uint32_t launch_first;                // that of the launch's first block
std::vector<uint64_t> block_numbers;  // of the launch, in the order of running
uint32_t last_clock;                  // of any thread of the block
uint32_t barrier_clock;               // every thread's at the last barrier: what is older is ordered

const char* verb(Access access) {
  switch (access) {
    case Access::kRead:
      return "read";
    case Access::kWrite:
      return "write";
    case Access::kAtomic:
      return "atomic access";
    case Access::kAsyncBegin:
    case Access::kAsyncEnd:
      return "cp.async";
  }
  __builtin_unreachable();
}

uint32_t next_clock() {
  if (last_clock == Stamp::kMaxClock) fail({}, "the checker cannot count so many synchronizations in one block");
  return ++last_clock;
}

View view_of(const Thread& self) {
  View view{blocks_run, barrier_clock, self.warp, {}};
  std::copy(std::begin(self.seen), std::end(self.seen), view.seen);
  return view;
}

// Whether the current thread is ordered after what the stamp marks.
bool is_ordered(const Thread& self, const Buffer& buffer, Stamp past) {
  if (past.block() == blocks_run) {
    return past.clock() < barrier_clock ||
           (past.thread() / kLanes == self.warp && self.seen[past.thread() % kLanes] >= past.clock());
  }
  if (buffer.shared || past.block() < launch_first) return true;  // another block's own memory; an earlier kernel
  return publications_order(self, past, barrier_clock);
}

struct AccessContext {
  const Thread& self;
  const Buffer& buffer;
  Access access;
  Where where;
};

[[noreturn]] void fail_at(Where where, const char* text) {
  char place[512];
  where.describe(place, sizeof(place));
  fail({}, "%s: %s", place, text);
}

[[noreturn]] void fail_in(const AccessContext& context, size_t cell, const char* what) {
  char text[1024];
  snprintf(text, sizeof(text), "%s %s+%zu of %zu bytes", what, context.buffer.name.c_str(),
           cell << context.buffer.granule_log, context.buffer.bytes);
  fail_at(context.where, text);
}

[[noreturn]] void fail_race(const AccessContext& context, size_t cell, const Event& past, const char* past_verb) {
  char past_place[512];
  past.where.describe(past_place, sizeof(past_place));
  const int thread = past.stamp.thread();
  const uint3 index = block.threads[thread].index;
  char other[64] = "";
  if (past.stamp.block() != blocks_run) {
    const uint64_t number = block_numbers[past.stamp.block() - launch_first];
    snprintf(other, sizeof(other), " of block (%u,%u,%u)", unsigned(number % gridDim.x),
             unsigned(number / gridDim.x % gridDim.y), unsigned(number / gridDim.x / gridDim.y));
  }
  char text[1536];
  snprintf(text, sizeof(text),
           "data race on %s+%zu of %zu bytes: nothing orders this %s after the %s by thread (%u,%u,%u)%s at %s",
           context.buffer.name.c_str(), cell << context.buffer.granule_log, context.buffer.bytes, verb(context.access),
           past_verb, index.x, index.y, index.z, other, past_place);
  fail_at(context.where, text);
}

// What memory holds until somebody writes it: NaN as any float type, and a pattern that nobody writes by chance.
constexpr unsigned char kUnwritten[2] = {0xFA, 0xFF};

void fill_unwritten(const void* pointer, size_t bytes) {
  auto* target = static_cast<unsigned char*>(const_cast<void*>(pointer));
  for (size_t i = 0; i < bytes; ++i) target[i] = kUnwritten[i % 2];
}

// The host, torch's own operators included, writes unseen; but then the pattern is gone.
bool host_wrote(const Buffer& buffer, size_t index) {
  const size_t begin = index << buffer.granule_log;
  const size_t end = std::min(begin + (size_t{1} << buffer.granule_log), buffer.bytes);
  const auto* memory = reinterpret_cast<const unsigned char*>(buffer.low);
  for (size_t word = begin; word < end; word += 4) {
    bool changed = false;
    for (size_t i = word; i < std::min(word + 4, end); ++i) changed |= memory[i] != kUnwritten[i % 2];
    if (!changed) return false;
  }
  return true;
}

void require_initialised(const AccessContext& context, Cell& cell, size_t index) {
  const Stamp written = cell.write.stamp;
  const bool stale = context.buffer.shared && written.block() != blocks_run;
  if (written && !stale) {
    if (written.in_flight()) fail_in(context, index, "read before the wait for the cp.async that fills");
  } else if (!context.buffer.initialized) {
    if (context.buffer.shared || !host_wrote(context.buffer, index)) fail_in(context, index, "uninitialized read of");
    cell.write = {Stamp::of_host(), Where()};
  }
}

void check_read(const AccessContext& context, Cell& cell, size_t index, const Event& now) {
  if (cell.read.stamp == now.stamp) return;
  require_initialised(context, cell, index);
  if (cell.write.stamp && !is_ordered(context.self, context.buffer, cell.write.stamp)) {
    fail_race(context, index, cell.write, cell.write.stamp.atomic() ? "atomic access" : "write");
  }
  const Stamp last = cell.read.stamp;
  if (!last || last.thread() != now.stamp.thread() || last.block() != now.stamp.block()) {
    const bool same_warp = last.thread() / kLanes == context.self.warp && last.block() == now.stamp.block();
    (same_warp ? cell.lane_read : cell.other_read) = cell.read;
  }
  cell.read = now;
}

void check_write(const AccessContext& context, Cell& cell, size_t index, const Event& now) {
  const Stamp written = cell.write.stamp;
  if (written == now.stamp && !now.stamp.in_flight()) return;  // two copies in flight may land in either order
  if (context.access == Access::kAtomic) require_initialised(context, cell, index);
  if (written && !(written.atomic() && now.stamp.atomic()) && !is_ordered(context.self, context.buffer, written)) {
    fail_race(context, index, cell.write, written.atomic() ? "atomic access" : "write");
  }
  if (written.in_flight() && written.block() == blocks_run && context.access != Access::kAsyncEnd) {
    fail_in(context, index, "write before the wait for the cp.async that fills");
  }
  for (const Event* past : {&cell.read, &cell.lane_read, &cell.other_read}) {
    if (past->stamp && !is_ordered(context.self, context.buffer, past->stamp)) fail_race(context, index, *past, "read");
  }
  cell.write = now;
  if (context.access == Access::kAtomic)
    return;  // the next atomic need not be ordered after this one, but after the reads
  cell.read.stamp = cell.lane_read.stamp = cell.other_read.stamp =
      Stamp();  // whoever is ordered after it is after them
}

// One place in the code mostly touches one buffer.
Buffer* find_buffer_from(Where where, uintptr_t address) {
  static Buffer* recent[512];
  static uint64_t seen_changes;
  const uint64_t changes = registry_changes.load(std::memory_order_relaxed);
  if (seen_changes != changes) {
    std::fill(std::begin(recent), std::end(recent), nullptr);
    seen_changes = changes;
  }
  Buffer*& slot = recent[where.hash() % std::size(recent)];
  if (slot == nullptr || !slot->contains(address)) slot = find_buffer(address);
  return slot;
}

// Constants and variables of the library or program that holds the kernels.
bool is_static_data(uintptr_t address) {
  static uintptr_t low, high;
  if (high == 0) {
    const auto find_own = [](dl_phdr_info* module, size_t, void*) {
      uintptr_t first = ~uintptr_t{0}, last = 0;
      for (int i = 0; i < module->dlpi_phnum; ++i) {
        if (module->dlpi_phdr[i].p_type != PT_LOAD) continue;
        const uintptr_t begin = module->dlpi_addr + module->dlpi_phdr[i].p_vaddr;
        first = std::min(first, begin);
        last = std::max<uintptr_t>(last, begin + module->dlpi_phdr[i].p_memsz);
      }
      const auto own = reinterpret_cast<uintptr_t>(&threadIdx);
      if (own < first || own >= last) return 0;
      low = first;
      high = last;
      return 1;
    };
    dl_iterate_phdr(find_own, nullptr);
  }
  return address >= low && address < high;
}

[[noreturn]] void fail_outside(uintptr_t address, size_t bytes, Access access, Where where) {
  char text[1024];
  const uintptr_t stacks = reinterpret_cast<uintptr_t>(fiber_stacks());
  if (address - stacks < kMaxThreads * Fiber::kStackBytes) {
    snprintf(text, sizeof(text), "%zu-byte %s of another thread's local variable", bytes, verb(access));
  } else if (const Buffer* below = find_buffer_below(address)) {
    snprintf(text, sizeof(text),
             "out of bounds: %zu-byte %s in no known buffer; the nearest below is %s+%zu of %zu bytes", bytes,
             verb(access), below->name.c_str(), address - below->low, below->bytes);
  } else {
    snprintf(text, sizeof(text), "out of bounds: %zu-byte %s in no known buffer", bytes, verb(access));
  }
  fail_at(where, text);
}

}  // namespace

void check_memory(const void* pointer, size_t bytes, Access access, Where where) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (is_static_data(address)) return;
  Buffer* buffer = find_buffer_from(where, address);
  if (buffer == nullptr) fail_outside(address, bytes, access, where);
  const Thread& self = *current;
  if (address + bytes > buffer->low + buffer->bytes) {
    char text[512];
    snprintf(text, sizeof(text), "out of bounds: %zu-byte %s at %s+%zu of %zu bytes", bytes, verb(access),
             buffer->name.c_str(), address - buffer->low, buffer->bytes);
    fail_at(where, text);
  }
  if (access == Access::kAtomic && !buffer->shared) publications_atomic(self, address, barrier_clock);
  buffer->refine_for(address, bytes);
  const AccessContext context{self, *buffer, access, where};
  const bool in_flight = access == Access::kAsyncBegin;
  const Event now{Stamp(blocks_run, self.clock, self.id, access == Access::kAtomic, in_flight), where};
  const size_t last = buffer->index_of(address + bytes - 1);
  for (size_t index = buffer->index_of(address); index <= last; ++index) {
    if (access == Access::kRead) {
      check_read(context, buffer->cells[index], index, now);
    } else {
      check_write(context, buffer->cells[index], index, now);
    }
  }
}

void check_access(const void* pointer, size_t bytes, Access access, Location at) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (access == Access::kAtomic && address % bytes != 0) fail(at, "misaligned %zu-byte atomic access", bytes);
  if (checked_stack == nullptr || !config().check) return;
  if (address - reinterpret_cast<uintptr_t>(checked_stack) < Fiber::kStackBytes) return;
  check_memory(pointer, bytes, access, Where(at));
}

void checker_begin_launch() {
  if (!config().check) return;
  launch_first = blocks_run + 1;
  block_numbers.clear();
  publications_begin_launch();
}

void checker_begin_block(uint64_t number) {
  if (!config().check) return;
  ++blocks_run;
  block_numbers.push_back(number);
  last_clock = barrier_clock = 1;
  for (int id = 0; id < block.thread_count; ++id) {
    Thread& thread = block.threads[id];
    std::fill(std::begin(thread.seen), std::end(thread.seen), 0);
    thread.clock = thread.seen[thread.lane] = 1;
  }
  publications_begin_block();
}

void checker_barrier() {
  if (!config().check) return;
  publications_barrier(barrier_clock);
  barrier_clock = next_clock();
  for (int id = 0; id < block.thread_count; ++id) {
    Thread& thread = block.threads[id];
    thread.clock = thread.seen[thread.lane] = barrier_clock;
  }
}

void checker_sync_warp(Thread* lanes, uint32_t mask) {
  if (!config().check) return;
  uint32_t joined[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    for (int other = 0; other < kLanes; ++other) joined[other] = std::max(joined[other], lanes[lane].seen[other]);
  }
  const uint32_t clock = next_clock();
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    std::copy(std::begin(joined), std::end(joined), lanes[lane].seen);
    lanes[lane].clock = lanes[lane].seen[lane] = clock;
  }
  publications_sync_warp(lanes, mask);
}

void thread_fence() {
  if (!config().check) return;
  publications_fence(*current, view_of(*current));
  current->clock = current->seen[current->lane] = next_clock();  // what follows was not fenced
}

void checker_forget(const void* pointer, size_t bytes) {
  if (!config().check) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  Buffer* buffer = find_buffer(address);
  buffer->refine_for(address, bytes);
  std::fill(buffer->cells + buffer->index_of(address), buffer->cells + buffer->index_of(address + bytes - 1) + 1,
            Cell{});
}

void register_buffer(const void* pointer, size_t bytes, bool initialized, const char* name) {
  if (!config().check || bytes == 0) return;
  if (!initialized) fill_unwritten(pointer, bytes);
  add_buffer(pointer, bytes, initialized, name, nullptr);
}

void unregister_buffer(const void* pointer) {
  if (config().check) remove_buffer(pointer);
}

void require_buffer(const void* pointer, size_t bytes, const char* by) {
  if (!config().check || bytes == 0) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const Buffer* buffer = find_buffer(address);
  if (buffer == nullptr || address + bytes > buffer->low + buffer->bytes) {
    fail({}, "%s: the %zu bytes at %p are not all within one known buffer", by, bytes, pointer);
  }
}

}  // namespace deepclust::emulator

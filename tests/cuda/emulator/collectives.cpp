// Where threads meet: barriers of the block and the warp-level functions.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "block.h"
#include "checker.h"

namespace deepclust::emulator {
namespace {

bool same_name(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same_place(Location a, Location b) {
  return a.line == b.line && a.column == b.column && same_name(a.file, b.file);
}

// Lets everybody go on if the last living thread has arrived.
void complete_barrier() {
  Barrier& barrier = block.barrier;
  if (barrier.arrived == 0 || barrier.arrived < block.alive_count) return;
  checker_barrier();
  if (barrier.forgotten_bytes > 0) {
    std::memset(barrier.forgotten, kPoison, barrier.forgotten_bytes);
    checker_forget(barrier.forgotten, barrier.forgotten_bytes);
  }
  for (int id = 0; id < block.thread_count; ++id) block.threads[id].answer = barrier.true_predicates;
  std::copy(std::begin(block.alive), std::end(block.alive), std::begin(block.ready));
  barrier.arrived = 0;
}

int arrive_at_barrier(const char* name, bool predicate, unsigned char* forgotten, size_t forgotten_bytes, Location at) {
  Barrier& barrier = block.barrier;
  if (barrier.arrived == 0) {
    barrier = {0, 0, name, at, forgotten, forgotten_bytes};
  } else if (!same_place(barrier.at, at) || !same_name(barrier.name, name)) {
    char column[32] = "";
    if (barrier.at.column != 0) snprintf(column, sizeof(column), ", column %d", barrier.at.column);
    fail(at, "divergent barrier: this thread calls %s, others wait in %s at %s:%d%s", name, barrier.name,
         base_name(barrier.at.file), barrier.at.line, column);
  } else if (barrier.forgotten != forgotten || barrier.forgotten_bytes != forgotten_bytes) {
    fail(at, "the threads of the block pass different ranges to %s", name);
  }
  ++barrier.arrived;
  barrier.true_predicates += predicate;
  if (barrier.arrived == block.alive_count) {
    complete_barrier();
    yield();
  } else {
    wait(name, at);
  }
  return static_cast<int>(current->answer);
}

// The collective that lanes wait in with this name and mask, or a free one.
//
// A lane may be named by a mask and still do other things first: quads of a diverged warp meet among themselves while
// the rest of the warp waits for all. Wrong is a mask that names a lane which in turn waits for this one elsewhere.
Collective& join(Warp& warp, const char* name, uint32_t mask, Location at) {
  const int lane = current->lane;
  for (uint32_t left = warp.active; left != 0; left &= left - 1) {
    Collective& other = warp.collectives[__builtin_ctz(left)];
    if (other.mask == mask && same_name(other.name, name)) return other;
    if ((other.mask >> lane & 1) != 0 && (other.arrived & mask) != 0) {
      fail(at, "lane %d calls %s with mask %08x while lanes of that mask wait in %s with mask %08x at %s:%d", lane,
           name, mask, other.name, other.mask, base_name(other.at.file), other.at.line);
    }
  }
  const int free_slot = __builtin_ctz(~warp.active);  // there is one: a lane waits in one collective at most
  warp.active |= uint32_t{1} << free_slot;
  Collective& collective = warp.collectives[free_slot];
  collective.name = name;
  collective.mask = mask;
  collective.arrived = 0;
  collective.at = at;
  return collective;
}

}  // namespace

void reset_collectives() {
  block.barrier.arrived = 0;
  for (int w = 0; w * kLanes < block.thread_count; ++w) {
    Warp& warp = block.warps[w];
    const int lanes = std::min(kLanes, block.thread_count - w * kLanes);
    warp.lanes = &block.threads[w * kLanes];
    warp.absent = lanes == kLanes ? 0 : ~uint32_t{0} << lanes;
    warp.active = 0;
  }
}

void leave_collectives() {
  Warp& warp = block.warps[current->warp];
  const uint32_t bit = uint32_t{1} << current->lane;
  for (uint32_t left = warp.active; left != 0; left &= left - 1) {
    const Collective& waiting = warp.collectives[__builtin_ctz(left)];
    if ((waiting.mask & bit) == 0) continue;
    fail(waiting.at, "lane %d leaves the kernel, but the mask %08x of %s names it", current->lane, waiting.mask,
         waiting.name);
  }
  warp.absent |= bit;
  block.alive[current->id / 64] &= ~(uint64_t{1} << current->id % 64);
  --block.alive_count;
  complete_barrier();  // threads that left the kernel no longer count
}

int block_barrier(const char* name, bool predicate, Location at) {
  return arrive_at_barrier(name, predicate, nullptr, 0, at);
}

void block_barrier_forget(const void* pointer, size_t bytes, Location at) {
  if (!is_shared(pointer, bytes)) fail(at, "sync_forget: the range is not one open array of shared memory");
  arrive_at_barrier("sync_forget", false, static_cast<unsigned char*>(const_cast<void*>(pointer)), bytes, at);
}

void meet(const char* name, uint32_t mask, Alignment alignment, uint64_t value, uint64_t extra, Location at,
          Complete complete) {
  Warp& warp = block.warps[current->warp];
  const int lane = current->lane;
  if ((mask >> lane & 1) == 0) fail(at, "lane %d calls %s with mask %08x, which does not name it", lane, name, mask);
  if ((mask & warp.absent) != 0) {
    fail(at, "mask %08x of %s names lanes %08x, which left the kernel or never were", mask, name, mask & warp.absent);
  }
  Collective& collective = join(warp, name, mask, at);
  if (collective.arrived != 0 && alignment == Alignment::kAligned && !same_place(collective.at, at)) {
    fail(at, "lane %d calls %s here while other lanes of its warp wait in %s at %s:%d", lane, name, name,
         base_name(collective.at.file), collective.at.line);
  }
  collective.arrived |= uint32_t{1} << lane;
  collective.value[lane] = value;
  collective.extra[lane] = extra;
  if (collective.arrived != mask) {
    wait(name, at);
    return;
  }
  complete(collective, warp.lanes);
  warp.active &= ~(uint32_t{1} << (&collective - warp.collectives));
  block.ready[current->warp / 2] |= uint64_t{mask} << (current->warp % 2 * kLanes);
  if (config().schedule != Schedule::kForward) yield();  // forward: the last lane goes on, which saves a switch
}

int lane_id() { return current->lane; }

void sync_warp(uint32_t mask, Location at) {
  meet("__syncwarp", mask, Alignment::kDivergent, 0, 0, at,
       [](Collective& collective, Thread* lanes) { checker_sync_warp(lanes, collective.mask); });
}

uint64_t shuffle(const char* name, uint32_t mask, uint64_t value, int source_lane, Location at) {
  meet(name, mask, Alignment::kDivergent, value, source_lane, at, [](Collective& collective, Thread* lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((collective.mask >> lane & 1) == 0) continue;
      const int source = static_cast<int>(collective.extra[lane]);
      if ((collective.mask >> source & 1) == 0) {
        fail(collective.at, "%s: lane %d reads lane %d, which mask %08x does not name", collective.name, lane, source,
             collective.mask);
      }
      lanes[lane].answer = collective.value[source];
    }
  });
  return current->answer;
}

uint32_t ballot(const char* name, uint32_t mask, bool predicate, Location at) {
  meet(name, mask, Alignment::kDivergent, predicate, 0, at, [](Collective& collective, Thread* lanes) {
    uint32_t votes = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((collective.mask >> lane & 1) != 0 && collective.value[lane] != 0) votes |= uint32_t{1} << lane;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((collective.mask >> lane & 1) != 0) lanes[lane].answer = votes;
    }
  });
  return static_cast<uint32_t>(current->answer);
}

uint32_t match_any(uint32_t mask, uint64_t value, Location at) {
  meet("__match_any_sync", mask, Alignment::kDivergent, value, 0, at, [](Collective& collective, Thread* lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((collective.mask >> lane & 1) == 0) continue;
      uint32_t equal = 0;
      for (int other = 0; other < kLanes; ++other) {
        const bool named = (collective.mask >> other & 1) != 0;
        if (named && collective.value[other] == collective.value[lane]) equal |= uint32_t{1} << other;
      }
      lanes[lane].answer = equal;
    }
  });
  return static_cast<uint32_t>(current->answer);
}

namespace {
uint32_t combine(uint32_t a, uint32_t b, Reduction reduction) {
  const auto signed_a = static_cast<int32_t>(a);
  const auto signed_b = static_cast<int32_t>(b);
  switch (reduction) {
    case Reduction::kAdd:
      return a + b;
    case Reduction::kMinSigned:
      return static_cast<uint32_t>(std::min(signed_a, signed_b));
    case Reduction::kMinUnsigned:
      return std::min(a, b);
    case Reduction::kMaxSigned:
      return static_cast<uint32_t>(std::max(signed_a, signed_b));
    case Reduction::kMaxUnsigned:
      return std::max(a, b);
    case Reduction::kAnd:
      return a & b;
    case Reduction::kOr:
      return a | b;
    case Reduction::kXor:
      return a ^ b;
  }
  __builtin_unreachable();
}
}  // namespace

uint32_t reduce(const char* name, uint32_t mask, uint32_t value, Reduction reduction, Location at) {
  meet(name, mask, Alignment::kDivergent, value, static_cast<uint64_t>(reduction), at,
       [](Collective& collective, Thread* lanes) {
         const int first = __builtin_ctz(collective.mask);
         const auto chosen = static_cast<Reduction>(collective.extra[first]);
         auto result = static_cast<uint32_t>(collective.value[first]);
         for (int lane = first + 1; lane < kLanes; ++lane) {
           if ((collective.mask >> lane & 1) == 0) continue;
           result = combine(result, static_cast<uint32_t>(collective.value[lane]), chosen);
         }
         for (int lane = 0; lane < kLanes; ++lane) {
           if ((collective.mask >> lane & 1) != 0) lanes[lane].answer = result;
         }
       });
  return static_cast<uint32_t>(current->answer);
}

}  // namespace deepclust::emulator

// State of the running block, shared by the files of the runtime and unknown to kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "fiber.h"
#include "runtime.h"

namespace deepclust::emulator {

constexpr int kMaxThreads = 1024;
constexpr int kLanes = 32;
constexpr unsigned char kPoison = 0xFF;  // fills memory not yet written: NaN as any float type, -1 as an index

struct AsyncCopy {
  unsigned char* target;
  const void* source;
  int bytes;
  uint32_t group;
  Location at;
};

struct AsyncCopies {  // of one thread, oldest first
  std::vector<AsyncCopy> pending;
  uint32_t committed = 0;  // groups
};

struct Thread {
  Fiber fiber;
  bool started = false;  // the fiber has a stack that waits for its next block
  bool exited;
  uint3 index;
  int id;
  int lane;
  int warp;
  const char* waits_in;  // barrier or warp-level function, with its place
  Location waits_at;
  uint64_t answer;  // of the last one
  AsyncCopies copies;
  // The checker's. A thread's clock moves on where others learn what it did; `seen` holds, for each lane of the warp,
  // the clock up to which this thread is ordered after it.
  uint32_t clock;
  uint32_t seen[kLanes];
};

// The lanes of `mask` meet in a warp-level function; the last to arrive completes it for all.
struct Collective {
  const char* name;
  uint32_t mask;
  uint32_t arrived;
  Location at;
  uint64_t value[kLanes];
  uint64_t extra[kLanes];
};

struct Warp {
  Thread* lanes;
  uint32_t absent;  // lanes that the block does not have or that left the kernel
  uint32_t active;  // which of the collectives below lanes wait in
  Collective collectives[kLanes];
};

struct Barrier {
  int arrived;
  int true_predicates;
  const char* name;
  Location at;
  unsigned char* forgotten;
  size_t forgotten_bytes;
};

struct Block {
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / kLanes];
  uint64_t ready[kMaxThreads / 64];  // threads that can run, one bit each
  uint64_t alive[kMaxThreads / 64];
  int thread_count;
  int alive_count;
  Barrier barrier;
};
extern Block block;

// The running CUDA thread; null outside of kernels and in other threads of the process.
extern thread_local Thread* current __attribute__((tls_model("initial-exec")));

uint64_t random_word();

// ---- Scheduling (runtime.cpp)
void wait(const char* name, Location at);  // until somebody sets the thread's bit in block.ready
void yield();                              // to whom the schedule favors, maybe to nobody else
uint64_t current_launch();                 // counts launches

// ---- Barriers and collectives (collectives.cpp)
void reset_collectives();
void leave_collectives();  // the current thread exits
using Complete = void (*)(Collective& collective, Thread* lanes);
enum class Alignment { kDivergent, kAligned };  // aligned: the whole warp, at one place of the code
void meet(const char* name, uint32_t mask, Alignment alignment, uint64_t value, uint64_t extra, Location at,
          Complete complete);

// ---- Shared memory (shared_memory.cpp)
void begin_shared(size_t dynamic_bytes);  // of a launch
void end_shared();
void refill_shared();  // with poison, for the next block
bool is_shared(const void* pointer, size_t bytes);

}  // namespace deepclust::emulator

#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <numeric>
#include <vector>

#include "block.h"
#include "checker.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Defined by hooks.cpp; its address is null where that file is not linked.
extern "C" __attribute__((weak)) const char deepclust_emulator_hooks;

namespace deepclust::emulator {

Block block;
thread_local Thread* current;

namespace {

Fiber host;  // the stack that launched the grid
char* stacks;
KernelCall kernel_call;
const void* kernel_arguments;
uint64_t launches;
uint64_t random_state;
char error_text[4096];
bool failed;

// Index in `words`, the values that an environment variable may have; 0 if it is not set.
int choice(const char* variable, std::vector<std::string> words) {
  const char* word = std::getenv(variable);
  if (word == nullptr) return 0;
  const auto found = std::find(words.begin(), words.end(), word);
  if (found == words.end()) throw Error(std::string(variable) + "=" + word + " is not a value that the emulator knows");
  return static_cast<int>(found - words.begin());
}

// The thread that the schedule takes next; null if none can run.
Thread* next_thread() {
  const int words = (block.thread_count + 63) / 64;
  switch (config().schedule) {
    case Schedule::kForward:
      for (int word = 0; word < words; ++word) {
        if (block.ready[word] != 0) return &block.threads[word * 64 + __builtin_ctzll(block.ready[word])];
      }
      return nullptr;
    case Schedule::kReverse:
      for (int word = words - 1; word >= 0; --word) {
        if (block.ready[word] != 0) return &block.threads[word * 64 + 63 - __builtin_clzll(block.ready[word])];
      }
      return nullptr;
    case Schedule::kRandom:
      break;
  }
  const uint64_t random = random_word();
  const int first = static_cast<int>((random >> 32) % words);
  uint64_t candidates = block.ready[first] & (~uint64_t{0} << random % 64);
  for (int step = 0; step <= words; ++step) {
    const int word = (first + step) % words;
    if (step > 0) candidates = block.ready[word];
    if (candidates != 0) return &block.threads[word * 64 + __builtin_ctzll(candidates)];
  }
  return nullptr;
}

void switch_to(Thread* next) {
  Fiber& from = current != nullptr ? current->fiber : host;
  current = next;
  if (next == nullptr) {
    checked_stack = nullptr;
    host.resume(from);
  } else {
    threadIdx = next->index;
    checked_stack = stacks + next->id * Fiber::kStackBytes;
    next->fiber.resume(from);
  }
}

// What every fiber runs, block after block and launch after launch.
void run_threads() {
  for (;;) {
    kernel_call(kernel_arguments);
    Thread& self = *current;
    self.exited = true;
    block.ready[self.id / 64] &= ~(uint64_t{1} << self.id % 64);
    leave_collectives();
    switch_to(next_thread());
  }
}

void start_fibers() {
  if (stacks == nullptr) {
    void* memory = mmap(nullptr, kMaxThreads * Fiber::kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks = static_cast<char*>(memory);
  }
  for (int id = 0; id < block.thread_count; ++id) {
    Thread& thread = block.threads[id];
    if (thread.started) continue;
    char* stack = stacks + id * Fiber::kStackBytes;
    mprotect(stack, 4096, PROT_NONE);  // an overflow faults
    thread.fiber.start(stack, run_threads);
    thread.started = true;
  }
}

[[noreturn]] void abandon(const std::string& message) {
  for (Thread& thread : block.threads) thread.started = false;
  throw Error(message);
}

std::string deadlock_report() {
  std::string report = "deadlock: no thread can run;";
  int shown = 0;
  for (int id = 0; id < block.thread_count && shown < 4; ++id) {
    const Thread& thread = block.threads[id];
    if (thread.exited) continue;
    char line[512];
    snprintf(line, sizeof(line), "%s thread (%u,%u,%u) waits in %s at %s:%d", shown++ > 0 ? "," : "", thread.index.x,
             thread.index.y, thread.index.z, thread.waits_in, base_name(thread.waits_at.file), thread.waits_at.line);
    report += line;
  }
  return report;
}

std::string place_text(bool with_thread) {
  char text[160];
  const int length = snprintf(text, sizeof(text), "block (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
  if (with_thread) {
    snprintf(text + length, sizeof(text) - length, ", thread (%u,%u,%u)", threadIdx.x, threadIdx.y, threadIdx.z);
  }
  return text;
}

void run_block(uint64_t number) {
  blockIdx.x = static_cast<unsigned>(number % gridDim.x);
  blockIdx.y = static_cast<unsigned>(number / gridDim.x % gridDim.y);
  blockIdx.z = static_cast<unsigned>(number / gridDim.x / gridDim.y);
  block.alive_count = block.thread_count;
  for (int id = 0; id < block.thread_count; ++id) {
    Thread& thread = block.threads[id];
    thread.exited = false;
    thread.copies.pending.clear();
    thread.copies.committed = 0;
  }
  for (int word = 0; word < kMaxThreads / 64; ++word) {
    const int count = std::clamp(block.thread_count - word * 64, 0, 64);
    block.alive[word] = block.ready[word] = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  }
  reset_collectives();
  refill_shared();
  checker_begin_block(number);
  switch_to(next_thread());
  if (failed) {
    failed = false;
    abandon(error_text);
  }
  if (block.alive_count > 0) abandon(place_text(false) + ": " + deadlock_report());
}

void run_blocks() {
  std::vector<uint64_t> order(uint64_t{gridDim.x} * gridDim.y * gridDim.z);
  std::iota(order.begin(), order.end(), 0);
  if (config().schedule == Schedule::kReverse) std::reverse(order.begin(), order.end());
  if (config().schedule == Schedule::kRandom) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_word() % i]);
  }
  for (const uint64_t number : order) run_block(number);
}

bool is_valid(dim3 grid, dim3 size) {
  const auto within = [](unsigned value, unsigned most) { return value >= 1 && value <= most; };
  return within(grid.x, 0x7fffffff) && within(grid.y, 65535) && within(grid.z, 65535) && within(size.x, 1024) &&
         within(size.y, 1024) && within(size.z, 64) && size.x * size.y * size.z <= kMaxThreads;
}

}  // namespace

Config::Config()
    : schedule(static_cast<Schedule>(choice("DEEPCLUST_EMULATOR_SCHEDULE", {"forward", "reverse", "random"}))),
      cp_async(static_cast<CpAsync>(choice("DEEPCLUST_EMULATOR_CP_ASYNC", {"late", "early", "random"}))),
      check(&deepclust_emulator_hooks != nullptr) {
  if (const char* text = std::getenv("DEEPCLUST_EMULATOR_SEED")) seed = std::strtoull(text, nullptr, 10);
}

Config& config() {
  static Config instance;
  return instance;
}

namespace {
[[maybe_unused]] const Config& read_at_load = config();  // so that a bad value is not found in the midst of a test
}

const char* fiber_stacks() { return stacks; }

uint64_t current_launch() { return launches; }

uint64_t random_word() {  // splitmix64
  random_state += 0x9E3779B97F4A7C15u;
  uint64_t word = random_state;
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
  return word ^ (word >> 31);
}

void wait(const char* name, Location at) {
  Thread& self = *current;
  self.waits_in = name;
  self.waits_at = at;
  block.ready[self.id / 64] &= ~(uint64_t{1} << self.id % 64);
  switch_to(next_thread());
}

void yield() {
  Thread* next = next_thread();
  if (next != current) switch_to(next);
}

void fail(Location at, const char* format, ...) {
  // No string lives on the fiber's stack, which is left for good: it would leak.
  char body[3072];
  va_list values;
  va_start(values, format);
  vsnprintf(body, sizeof(body), format, values);
  va_end(values);
  char place[512] = "";
  if (at.file != nullptr) snprintf(place, sizeof(place), "%s:%d: ", base_name(at.file), at.line);
  if (current == nullptr) throw Error(std::string(place) + body);
  snprintf(error_text, sizeof(error_text), "block (%u,%u,%u), thread (%u,%u,%u): %s%s", blockIdx.x, blockIdx.y,
           blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, place, body);
  failed = true;
  switch_to(nullptr);
  std::abort();  // nobody resumes a fiber that failed
}

cudaError_t launch_grid(KernelCall call, const void* arguments, dim3 grid, dim3 size, size_t shared_bytes) {
  static std::mutex one_launch_at_a_time;
  if (current != nullptr) fail({}, "a kernel launched a kernel");
  if (!is_valid(grid, size)) return cudaErrorInvalidConfiguration;
  if (shared_bytes > config().max_shared_bytes) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  ++launches;
  kernel_call = call;
  kernel_arguments = arguments;
  gridDim = grid;
  blockDim = size;
  random_state = config().seed;
  block.thread_count = static_cast<int>(size.x * size.y * size.z);
  for (int id = 0; id < block.thread_count; ++id) {
    Thread& thread = block.threads[id];
    thread.id = id;
    thread.lane = id % kLanes;
    thread.warp = id / kLanes;
    thread.index.x = id % size.x;
    thread.index.y = id / size.x % size.y;
    thread.index.z = id / size.x / size.y;
  }
  start_fibers();
  begin_shared(shared_bytes);
  checker_begin_launch();
  struct End {
    ~End() { end_shared(); }
  } end;
  run_blocks();
  return cudaSuccess;
}

cudaError_t fill_memory(void* target, int value, size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  require_buffer(target, bytes, "memset_async");
  std::memset(target, value, bytes);
  return cudaSuccess;
}

}  // namespace deepclust::emulator

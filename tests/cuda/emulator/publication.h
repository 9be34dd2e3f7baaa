// Order between the blocks of a launch. A block publishes what it did by __threadfence and then an atomic; another
// block may rely on that once it did an atomic on the same address and then __threadfence (PTX: fences make the
// pattern, the atomics on both sides are relaxed). Barriers and __syncwarp hand both halves on to the other threads of
// a block.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "block.h"
#include "shadow.h"

namespace deepclust::emulator {

// What one thread is ordered after within its block, at one moment.
struct View {
  uint32_t block;
  uint32_t barrier_clock;
  int warp;
  uint32_t seen[kLanes];

  bool covers(Stamp stamp) const {  // of the same block
    return stamp.clock() < barrier_clock ||
           (stamp.thread() / kLanes == warp && seen[stamp.thread() % kLanes] >= stamp.clock());
  }
};

class ViewSet {
 public:
  bool empty() const { return views_.empty(); }
  void clear() { views_.clear(); }
  void add(const std::shared_ptr<const View>& view);
  void add(const ViewSet& others);
  bool covers(Stamp stamp) const;

 private:
  std::map<uint32_t, std::vector<std::shared_ptr<const View>>> views_;  // by block
};

void publications_begin_launch();
void publications_begin_block();
void publications_fence(const Thread& self, const View& view);
void publications_atomic(const Thread& self, uintptr_t address, uint32_t barrier_clock);
void publications_barrier(uint32_t ending_barrier_clock);
void publications_sync_warp(const Thread* lanes, uint32_t mask);
bool publications_order(const Thread& self, Stamp other_block, uint32_t barrier_clock);

}  // namespace deepclust::emulator

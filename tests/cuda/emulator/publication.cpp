#include "publication.h"

#include <algorithm>
#include <unordered_map>

namespace deepclust::emulator {
namespace {

// One thread's part in the pattern since the last barrier.
struct Publication {
  std::shared_ptr<const View> fenced;  // what its next atomic publishes
  uint32_t fenced_at = 0;              // barrier clock of its last fence
  ViewSet observed;                    // read by an atomic, not yet fenced
  ViewSet acquired;
};

std::map<int, Publication> of_thread;  // few threads take part
ViewSet block_observed;                // before the last barrier: any thread's fence acquires it
ViewSet block_acquired;
std::unordered_map<uintptr_t, ViewSet> published;  // by address of the atomic

}  // namespace

void ViewSet::add(const std::shared_ptr<const View>& view) {
  auto& of_block = views_[view->block];
  if (std::find(of_block.begin(), of_block.end(), view) == of_block.end()) of_block.push_back(view);
}

void ViewSet::add(const ViewSet& others) {
  for (const auto& [number, of_block] : others.views_) {
    for (const auto& view : of_block) add(view);
  }
}

bool ViewSet::covers(Stamp stamp) const {
  const auto found = views_.find(stamp.block());
  if (found == views_.end()) return false;
  return std::any_of(found->second.begin(), found->second.end(), [&](const auto& view) { return view->covers(stamp); });
}

void publications_begin_launch() { published.clear(); }

void publications_begin_block() {
  of_thread.clear();
  block_observed.clear();
  block_acquired.clear();
}

void publications_fence(const Thread& self, const View& view) {
  Publication& own = of_thread[self.id];
  own.fenced = std::make_shared<const View>(view);
  own.fenced_at = view.barrier_clock;
  own.acquired.add(own.observed);
  own.observed.clear();
}

void publications_atomic(const Thread& self, uintptr_t address, uint32_t barrier_clock) {
  const auto own = of_thread.find(self.id);
  const bool publishes = own != of_thread.end() && own->second.fenced != nullptr;
  if (published.empty() && !publishes) return;
  if (const auto earlier = published.find(address); earlier != published.end()) {
    of_thread[self.id].observed.add(earlier->second);
  }
  if (!publishes) return;
  ViewSet& at_address = published[address];
  at_address.add(own->second.fenced);
  at_address.add(own->second.acquired);
  at_address.add(block_acquired);
  if (own->second.fenced_at == barrier_clock) at_address.add(block_observed);
}

void publications_barrier(uint32_t ending_barrier_clock) {
  if (of_thread.empty()) return;
  const bool fenced = std::any_of(of_thread.begin(), of_thread.end(),
                                  [&](const auto& entry) { return entry.second.fenced_at == ending_barrier_clock; });
  if (fenced) {
    block_acquired.add(block_observed);
    block_observed.clear();
  }
  for (auto& [id, publication] : of_thread) {
    block_acquired.add(publication.acquired);
    block_observed.add(publication.observed);
    publication.acquired.clear();
    publication.observed.clear();
  }
}

void publications_sync_warp(const Thread* lanes, uint32_t mask) {
  if (of_thread.empty()) return;
  ViewSet observed;
  ViewSet acquired;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto found = of_thread.find(lanes[lane].id);
    if ((mask >> lane & 1) == 0 || found == of_thread.end()) continue;
    observed.add(found->second.observed);
    acquired.add(found->second.acquired);
  }
  if (observed.empty() && acquired.empty()) return;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    of_thread[lanes[lane].id].observed.add(observed);
    of_thread[lanes[lane].id].acquired.add(acquired);
  }
}

bool publications_order(const Thread& self, Stamp other_block, uint32_t barrier_clock) {
  if (block_acquired.covers(other_block)) return true;
  const auto own = of_thread.find(self.id);
  if (own == of_thread.end()) return false;
  return own->second.acquired.covers(other_block) ||
         (own->second.fenced_at == barrier_clock && block_observed.covers(other_block));
}

}  // namespace deepclust::emulator

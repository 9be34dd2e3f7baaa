#include "core/memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>

namespace deepclust {
namespace {

// Bytes from which a block is kept. The C library keeps smaller ones by itself, and returns larger ones to the system.
constexpr size_t kSmallest = size_t{1} << 20;

// A kept block serves a tensor that leaves at most one in so many of its bytes unused.
constexpr size_t kMostUnused = 8;

// Takes the place of torch's allocator for good, and does what that one does while nobody has asked for reuse.
//
// A step of training takes and frees blocks of the same sizes again and again. Kept and used blocks together never
// exceed what was in use at once since the reuse began, so no process grows by it: the oldest kept blocks go first.
class ReusingAllocator final : public c10::Allocator {
 public:
  // Torch keeps a plain pointer to it, and tensors may outlive everything else: it is never destroyed.
  static ReusingAllocator& get() {
    static auto* const allocator = new ReusingAllocator(c10::GetCPUAllocator());
    return *allocator;
  }

  void reuse(bool on) {
    std::lock_guard lock(mutex_);
    users_ += on ? 1 : -1;
    if (users_ == 0) {
      free_kept_down_to(0);
      most_used_ = 0;
    }
  }

  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes < kSmallest ? nullptr : take(bytes);
    if (data == nullptr) {
      return torch_allocator_->allocate(bytes);
    }
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }

 private:
  struct Kept {
    void* data;
    uint64_t time;  // when it was freed
  };

  explicit ReusingAllocator(c10::Allocator* torch_allocator) : torch_allocator_(torch_allocator) {
    c10::SetCPUAllocator(this);
    // A process that is forked while another thread holds the lock would wait for it for ever.
    pthread_atfork([] { get().mutex_.lock(); }, [] { get().mutex_.unlock(); }, [] { get().mutex_.unlock(); });
  }

  // A block of so many bytes or a little more; null while nobody has asked for reuse.
  void* take(size_t bytes) {
    std::lock_guard lock(mutex_);
    if (users_ == 0) {
      return nullptr;
    }
    size_t size = bytes;
    void* data = nullptr;
    const auto fit = kept_.lower_bound(bytes);
    if (fit != kept_.end() && fit->first - bytes <= fit->first / kMostUnused) {
      size = fit->first;
      data = fit->second.data;
      kept_bytes_ -= size;
      kept_.erase(fit);
    }
    most_used_ = std::max(most_used_, used_bytes_ + size);
    if (data == nullptr) {
      free_kept_down_to(most_used_ - used_bytes_ - size);
      data = allocate_anew(size);
    }
    used_.emplace(data, size);
    used_bytes_ += size;
    return data;
  }

  void* allocate_anew(size_t bytes) {
    try {
      return c10::alloc_cpu(bytes);
    } catch (const c10::Error&) {
      if (kept_.empty()) {
        throw;
      }
      free_kept_down_to(0);
      return c10::alloc_cpu(bytes);
    }
  }

  static void release(void* data) {
    if (!get().keep(data)) {
      get().torch_allocator_->raw_deallocate(data);
    }
  }

  // Whether it was one of these blocks; it is kept, or freed if nobody has asked for reuse any more.
  bool keep(void* data) {
    std::lock_guard lock(mutex_);
    const auto found = used_.find(data);
    if (found == used_.end()) {
      return false;
    }
    c10::profiledCPUMemoryReporter().Delete(data);
    used_bytes_ -= found->second;
    kept_bytes_ += found->second;
    kept_.emplace(found->second, Kept{data, clock_++});
    used_.erase(found);
    if (users_ == 0) {
      free_kept_down_to(0);
    }
    return true;
  }

  void free_kept_down_to(size_t bytes) {
    while (kept_bytes_ > bytes) {
      const auto oldest = std::min_element(kept_.begin(), kept_.end(), [](const auto& one, const auto& other) {
        return one.second.time < other.second.time;
      });
      kept_bytes_ -= oldest->first;
      c10::free_cpu(oldest->second.data);
      kept_.erase(oldest);
    }
  }

  c10::Allocator* const torch_allocator_;
  std::mutex mutex_;
  std::multimap<size_t, Kept> kept_;  // by size in bytes
  std::unordered_map<void*, size_t> used_;
  size_t kept_bytes_ = 0;
  size_t used_bytes_ = 0;
  size_t most_used_ = 0;  // at once, since the reuse began
  uint64_t clock_ = 0;
  int users_ = 0;
};

}  // namespace

void reuse_memory(bool on) { ReusingAllocator::get().reuse(on); }

}  // namespace deepclust

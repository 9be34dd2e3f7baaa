// Huge pages for memory that is new at every call.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>

namespace deepclust {

// Asks for huge pages where a block is so large that malloc maps it anew for every call: otherwise each 4 KB of it cost
// a page fault, which together take longer than what the kernels do with them. The hint changes no contents.
inline void use_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kMapped = int64_t{32} << 20;  // the most that glibc, on 64 bits, takes from its heap
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  if (bytes < kMapped) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace deepclust

// What a case needs: it launches a kernel that writes what every lane got, and compares it with values that plain host
// code computed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "device_buffer.h"
#include "runner.h"

namespace conformance {

// Runs kernel(results, arguments...) and returns the results, of which the kernel must write every one.
template <class T, class... P, class... A>
std::vector<T> results_of(size_t count, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(T*, P...),
                          A&&... arguments) {
  DeviceBuffer<T> results(count, "results");
  require_success(deepclust::device::launch(kernel, grid, block, shared_bytes, nullptr, results.data(), arguments...));
  return results.to_host();
}

// The same for one warp that gives per_lane results in each lane, stored as results[which * 32 + lane].
template <class T, class... P, class... A>
std::vector<T> warp_results_of(size_t per_lane, void (*kernel)(T*, P...), A&&... arguments) {
  return results_of(per_lane * kLanes, 1, kLanes, 0, kernel, arguments...);
}

// A fixed sequence of numbers without pattern (the splitmix64 generator).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int integer(int low, int high) {  // both inclusive
    return low + static_cast<int>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

}  // namespace conformance

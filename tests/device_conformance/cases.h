// A case launches a kernel that writes what every lane got, and compares it with values that plain host code computed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "device_buffer.h"
#include "registry.h"

namespace conformance {

struct Registration {
  Registration(const char* name, void (*run)()) { all_cases().push_back({name, run}); }
};

#define DEVICE_CASE(name)                                   \
  void name();                                              \
  const conformance::Registration name##_case{#name, name}; \
  void name()

constexpr size_t kLanes = 32;

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

[[noreturn]] inline void fail_at(size_t index, size_t lanes, const std::string& got, const std::string& expected) {
  throw std::runtime_error("lane " + std::to_string(index % lanes) + ", result " + std::to_string(index / lanes) +
                           ": expected " + expected + ", got " + got);
}

template <class T>
std::string text_of(T value) {
  std::ostringstream text;
  text.precision(17);
  text << value;
  return text.str();
}

template <class T>
void expect_equal(const std::vector<T>& got, const std::vector<T>& expected, size_t lanes = kLanes) {
  if (got.size() != expected.size()) throw std::runtime_error("the case compares arrays of different length");
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(got[i] == expected[i])) fail_at(i, lanes, text_of(got[i]), text_of(expected[i]));
  }
}

// tolerance[i] is the greatest |got - expected| that the documentation of the operation allows.
template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& expected, const std::vector<double>& tolerance,
                 size_t lanes = kLanes) {
  if (got.size() != expected.size()) throw std::runtime_error("the case compares arrays of different length");
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - expected[i]);
    if (!(error <= tolerance[i])) {
      fail_at(i, lanes, text_of(got[i]), text_of(expected[i]) + " +- " + text_of(tolerance[i]));
    }
  }
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

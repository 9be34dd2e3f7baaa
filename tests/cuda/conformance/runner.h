// The host's side of a case: its entry in the list, and comparisons.
#pragma once

#include <cstddef>
#include <vector>

namespace conformance {

struct Registration {
  Registration(const char* name, void (*run)());
};

// A case: DEVICE_CASE(name) { ... } fails by throwing.
#define DEVICE_CASE(name)                                   \
  void name();                                              \
  const conformance::Registration name##_case{#name, name}; \
  void name()

constexpr size_t kLanes = 32;

// Both throw and name the first difference, value i as result i / lanes of lane i % lanes. They exist for the types
// that runner.cpp lists.
template <class T>
void expect_equal(const std::vector<T>& got, const std::vector<T>& expected, size_t lanes = kLanes);

// tolerance[i] is the greatest |got - expected| that the documentation of the operation allows.
template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& expected, const std::vector<double>& tolerance,
                 size_t lanes = kLanes);

}  // namespace conformance

// Runs all cases, or those named on the command line, and prints PASS or FAIL for each.
#include "runner.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>

namespace conformance {
namespace {

struct Case {
  const char* name;
  void (*run)();
};

std::vector<Case>& all_cases() {  // in a function, since cases register before main() starts
  static std::vector<Case> cases;
  return cases;
}

template <class T>
[[noreturn]] void fail_at(size_t index, size_t lanes, T got, T expected, double tolerance) {
  std::ostringstream text;
  text.precision(17);
  text << "lane " << index % lanes << ", result " << index / lanes << ": expected " << +expected;
  if (tolerance != 0) text << " +- " << tolerance;
  text << ", got " << +got;
  throw std::runtime_error(text.str());
}

void require_same_size(size_t a, size_t b) {
  if (a != b) throw std::logic_error("the case compares arrays of different length");
}

}  // namespace

Registration::Registration(const char* name, void (*run)()) { all_cases().push_back({name, run}); }

template <class T>
void expect_equal(const std::vector<T>& got, const std::vector<T>& expected, size_t lanes) {
  require_same_size(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(got[i] == expected[i])) fail_at(i, lanes, got[i], expected[i], 0);
  }
}

template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& expected, const std::vector<double>& tolerance,
                 size_t lanes) {
  require_same_size(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = got[i];
    if (!(std::fabs(value - expected[i]) <= tolerance[i])) fail_at(i, lanes, value, expected[i], tolerance[i]);
  }
}

#define INSTANTIATE_EQUAL(T) template void expect_equal(const std::vector<T>&, const std::vector<T>&, size_t);
#define INSTANTIATE_NEAR(T) \
  template void expect_near(const std::vector<T>&, const std::vector<double>&, const std::vector<double>&, size_t);
INSTANTIATE_EQUAL(unsigned char)
INSTANTIATE_EQUAL(int)
INSTANTIATE_EQUAL(unsigned)
INSTANTIATE_EQUAL(long long)
INSTANTIATE_EQUAL(unsigned long long)
INSTANTIATE_EQUAL(float)
INSTANTIATE_EQUAL(double)
INSTANTIATE_NEAR(float)
INSTANTIATE_NEAR(double)

}  // namespace conformance

int main(int count, char** names) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a crash shows how far it came
  int run = 0, failed = 0;
  for (const conformance::Case& test : conformance::all_cases()) {
    bool wanted = count == 1;
    for (int i = 1; i < count; ++i) wanted |= std::strcmp(names[i], test.name) == 0;
    if (!wanted) continue;
    ++run;
    try {
      test.run();
      std::printf("PASS %s\n", test.name);
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAIL %s: %s\n", test.name, error.what());
    }
  }
  std::printf("%d cases, %d failed\n", run, failed);
  return run == 0 || failed != 0;
}

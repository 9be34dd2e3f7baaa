// Runs all cases, or those named on the command line, and prints PASS or FAIL for each.
#include <cstdio>
#include <cstring>
#include <exception>

#include "registry.h"

namespace conformance {

std::vector<Case>& all_cases() {
  static std::vector<Case> cases;
  return cases;
}

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

// The list of cases, filled by static objects before main() runs.
#pragma once

#include <vector>

namespace conformance {

struct Case {
  const char* name;
  void (*run)();
};

std::vector<Case>& all_cases();

}  // namespace conformance

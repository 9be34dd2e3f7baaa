// What a library was built for. In a file of its own, because it alone differs between builds with and without CUDA.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace deepclust {

struct BuildInfo {
  std::string torch_version;
  std::optional<std::string> cuda_version;
  std::vector<std::string> cuda_architectures;  // in torch's notation
  std::string compiler;
  std::vector<std::string> devices;
  std::string cpu_capability;                       // the instruction set that runs
  std::vector<std::string> processor_capabilities;  // those that this processor can run, the best last
  std::string torch_capability;                     // the one that torch runs, or that ATEN_CPU_CAPABILITY asked for
};

BuildInfo build_info();

}  // namespace deepclust

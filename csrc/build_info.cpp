#include "build_info.h"

#include <torch/csrc/api/include/torch/version.h>

#include <algorithm>
#include <sstream>

#include "core/cpu/capability.h"

namespace deepclust {
namespace {

// "8.0;9.0+PTX", in which torch takes blanks for semicolons -> {"8.0", "9.0+PTX"}
[[maybe_unused]] std::vector<std::string> split_architectures(std::string list) {
  std::replace(list.begin(), list.end(), ';', ' ');
  std::istringstream stream(list);
  std::vector<std::string> names;
  for (std::string name; stream >> name;) names.push_back(name);
  return names;
}

}  // namespace

BuildInfo build_info() {
  BuildInfo info;
  info.torch_version = TORCH_VERSION;
  info.compiler = __VERSION__;
  info.devices = {"cpu"};
#ifdef DEEPCLUST_CUDA_VERSION
  info.cuda_version = DEEPCLUST_CUDA_VERSION;
  info.cuda_architectures = split_architectures(DEEPCLUST_CUDA_ARCHITECTURES);
  info.devices.emplace_back("cuda");
#endif
#ifdef DEEPCLUST_EMULATED
  info.cpu_capability = "emulated CUDA device";
#else
  info.cpu_capability = capability_name(cpu_capability());
#endif
  for (const Capability capability : {Capability::kBaseline, Capability::kAvx2, Capability::kAvx512}) {
    if (capability <= processor_capability()) info.processor_capabilities.emplace_back(capability_name(capability));
  }
  info.torch_capability = capability_name(torch_capability());
  return info;
}

}  // namespace deepclust

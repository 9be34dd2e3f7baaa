// The extension module: the op library's namespace, and pybind11 entries of the same names for direct calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/api/include/torch/version.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <vector>

#include "common/capability.h"
#include "ops/batch_hard_mining.h"
#include "ops/fused_hsd_loss.h"

TORCH_LIBRARY(deepclust_ext, library) { library.set_python_module("deepclust_ext.ops"); }

namespace {

pybind11::dict build_info() {
  std::optional<std::string> cuda_version;
  std::vector<std::string> cuda_architectures;
  std::vector<std::string> devices = {"cpu"};
  pybind11::dict info;
  info["torch_version"] = TORCH_VERSION;
  info["cuda_version"] = cuda_version;
  info["cuda_architectures"] = cuda_architectures;
  info["compiler"] = __VERSION__;
  info["devices"] = devices;
  info["cpu_capability"] = deepclust::capability_name(deepclust::cpu_capability());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", build_info, "What this library was built for and which instruction set it chose.");
  m.def("batch_hard_mining", deepclust::batch_hard_mining, pybind11::arg("teacher"), pybind11::arg("student"),
        pybind11::kw_only(), pybind11::arg("normalize") = true);
  m.def("fused_hsd_loss", deepclust::fused_hsd_loss, pybind11::arg("teacher"), pybind11::arg("student"),
        pybind11::kw_only(), pybind11::arg("temperature") = 0.5, pybind11::arg("normalize") = true,
        pybind11::arg("reduction") = "mean");
}

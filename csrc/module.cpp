// The extension module: the op library's namespace, and pybind11 entries of the same names for direct calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/api/include/torch/version.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "common/capability.h"
#include "ops/batch_hard_mining.h"
#include "ops/diffused_neighbor_gather.h"
#include "ops/fused_contrastive_loss.h"
#include "ops/fused_hsd_loss.h"
#include "ops/nearest_neighbors.h"
#include "ops/sinkhorn_knopp.h"

TORCH_LIBRARY(deepclust_ext, library) { library.set_python_module("deepclust_ext.ops"); }

namespace {

#ifdef DEEPCLUST_CUDA_VERSION
const std::vector<std::string> kDevices = {"cpu", "cuda"};
const std::optional<std::string> kCudaVersion = DEEPCLUST_CUDA_VERSION;
const std::string kArchitectureList = DEEPCLUST_CUDA_ARCHITECTURES;
#else
const std::vector<std::string> kDevices = {"cpu"};
const std::optional<std::string> kCudaVersion;
const std::string kArchitectureList;
#endif

const char* cpu_capability_name() {
#ifdef DEEPCLUST_EMULATED
  return "emulated CUDA device";
#else
  return deepclust::capability_name(deepclust::cpu_capability());
#endif
}

// "8.0;9.0+PTX", in which torch takes blanks for semicolons -> {"8.0", "9.0+PTX"}
std::vector<std::string> split_architectures(std::string list) {
  std::replace(list.begin(), list.end(), ';', ' ');
  std::istringstream stream(list);
  std::vector<std::string> names;
  for (std::string name; stream >> name;) names.push_back(name);
  return names;
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch_version"] = TORCH_VERSION;
  info["cuda_version"] = kCudaVersion;
  info["cuda_architectures"] = split_architectures(kArchitectureList);
  info["compiler"] = __VERSION__;
  info["devices"] = kDevices;
  info["cpu_capability"] = cpu_capability_name();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", build_info, "What this library was built for and which instruction set it chose.");
  m.def("batch_hard_mining", deepclust::batch_hard_mining, pybind11::arg("teacher"), pybind11::arg("student"),
        pybind11::kw_only(), pybind11::arg("normalize") = true);
  m.def("diffused_neighbor_gather", deepclust::diffused_neighbor_gather, pybind11::arg("query"), pybind11::arg("bank"),
        pybind11::arg("seed"), pybind11::kw_only(), pybind11::arg("num_neighbors") = 10,
        pybind11::arg("temperature") = 0.1, pybind11::arg("noise_std") = 0.001, pybind11::arg("num_steps") = 1,
        pybind11::arg("num_samples") = 1, pybind11::arg("exclude") = pybind11::none(),
        pybind11::arg("valid") = pybind11::none(), pybind11::arg("normalize") = false);
  m.def("fused_contrastive_loss", deepclust::fused_contrastive_loss, pybind11::arg("z_a"), pybind11::arg("z_b"),
        pybind11::kw_only(), pybind11::arg("temperature") = 0.5, pybind11::arg("hardness") = 0.0,
        pybind11::arg("debias") = 0.0, pybind11::arg("class_a") = pybind11::none(),
        pybind11::arg("class_b") = pybind11::none(), pybind11::arg("class_temperature") = 1.0,
        pybind11::arg("queue") = pybind11::none(), pybind11::arg("class_queue") = pybind11::none(),
        pybind11::arg("normalize") = true, pybind11::arg("reduction") = "mean");
  m.def("fused_hsd_loss", deepclust::fused_hsd_loss, pybind11::arg("teacher"), pybind11::arg("student"),
        pybind11::kw_only(), pybind11::arg("temperature") = 0.5, pybind11::arg("normalize") = true,
        pybind11::arg("reduction") = "mean");
  m.def("nearest_neighbors", deepclust::nearest_neighbors, pybind11::arg("query"), pybind11::arg("bank"),
        pybind11::kw_only(), pybind11::arg("k"), pybind11::arg("exclude") = pybind11::none(),
        pybind11::arg("valid") = pybind11::none());
  m.def("sinkhorn_knopp", deepclust::sinkhorn_knopp, pybind11::arg("scores"), pybind11::kw_only(),
        pybind11::arg("epsilon") = 0.05, pybind11::arg("num_iters") = 3,
        pybind11::arg("sample_marginals") = pybind11::none(), pybind11::arg("cluster_marginals") = pybind11::none(),
        pybind11::arg("tolerance") = pybind11::none(), pybind11::arg("differentiable") = false);
}

// The extension module: the op library's namespace, and pybind11 entries of the same names for direct calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "build_info.h"
#include "contrastive/fused_contrastive_loss.h"
#include "core/entry.h"
#include "core/memory.h"
#include "kmeans/kmeans_assign.h"
#include "kmeans/kmeans_seed.h"
#include "mining/batch_hard_mining.h"
#include "mining/fused_hsd_loss.h"
#include "neighbors/diffused_neighbor_gather.h"
#include "neighbors/nearest_neighbors.h"
#include "pairs/pair_information.h"
#include "sinkhorn/sinkhorn_knopp.h"
#include "views/augment_views.h"

TORCH_LIBRARY(deepclust_ext, library) { library.set_python_module("deepclust_ext.ops"); }

namespace {

pybind11::dict build_info() {
  const deepclust::BuildInfo built = deepclust::build_info();
  pybind11::dict info;
  info["torch_version"] = built.torch_version;
  info["cuda_version"] = built.cuda_version;
  info["cuda_architectures"] = built.cuda_architectures;
  info["compiler"] = built.compiler;
  info["devices"] = built.devices;
  info["cpu_capability"] = built.cpu_capability;
  info["processor_capabilities"] = built.processor_capabilities;
  info["torch_capability"] = built.torch_capability;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", build_info, "What this library was built for and which instruction set it chose.");
  m.def("reuse_memory", deepclust::reuse_memory, pybind11::arg("on"),
        "Begin or end that torch's large blocks of the CPU's memory are kept for the next tensors.");
  DEEPCLUST_ENTRY(augment_views);
  DEEPCLUST_ENTRY(batch_hard_mining);
  DEEPCLUST_ENTRY(diffused_neighbor_gather);
  DEEPCLUST_ENTRY(fused_contrastive_loss);
  DEEPCLUST_ENTRY(fused_hsd_loss);
  DEEPCLUST_ENTRY(kmeans_assign);
  DEEPCLUST_ENTRY(kmeans_seed);
  DEEPCLUST_ENTRY(kmeans_step);
  DEEPCLUST_ENTRY(kmeans_update);
  DEEPCLUST_ENTRY(nearest_neighbors);
  DEEPCLUST_ENTRY(pair_information);
  DEEPCLUST_ENTRY(pair_statistics);
  DEEPCLUST_ENTRY(sinkhorn_knopp);
}

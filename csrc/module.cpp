// The extension module: the op library's namespace, and pybind11 entries of the same names for direct calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "build_info.h"
#include "contrastive/fused_contrastive_loss.h"
#include "kmeans/kmeans_assign.h"
#include "kmeans/kmeans_seed.h"
#include "mining/batch_hard_mining.h"
#include "mining/fused_hsd_loss.h"
#include "neighbors/diffused_neighbor_gather.h"
#include "neighbors/nearest_neighbors.h"
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

// Owns the lists that the op only refers to.
at::Tensor augment_views(const std::vector<at::Tensor>& images, const std::vector<int64_t>& size,
                         const std::optional<at::Tensor>& boxes, const std::optional<at::Tensor>& flips,
                         const std::optional<at::Tensor>& matrices, const std::optional<at::Tensor>& steps,
                         const std::optional<at::Tensor>& strengths, int64_t blur_kernel,
                         const std::optional<std::vector<double>>& mean, const std::optional<std::vector<double>>& std,
                         at::ScalarType dtype, bool channels_last) {
  using Numbers = std::optional<at::ArrayRef<double>>;  // refers to the list
  return deepclust::augment_views(images, size, boxes, flips, matrices, steps, strengths, blur_kernel,
                                  mean ? Numbers(*mean) : Numbers(), std ? Numbers(*std) : Numbers(), dtype,
                                  channels_last);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", build_info, "What this library was built for and which instruction set it chose.");
  m.def("augment_views", augment_views, pybind11::arg("images"), pybind11::arg("size"),
        pybind11::arg("boxes") = pybind11::none(), pybind11::arg("flips") = pybind11::none(),
        pybind11::arg("matrices") = pybind11::none(), pybind11::arg("steps") = pybind11::none(),
        pybind11::arg("strengths") = pybind11::none(), pybind11::arg("blur_kernel") = 23,
        pybind11::arg("mean") = pybind11::none(), pybind11::arg("std") = pybind11::none(),
        pybind11::arg("dtype") = at::kFloat, pybind11::arg("channels_last") = false);
  m.def("batch_hard_mining", deepclust::batch_hard_mining, pybind11::arg("teacher"), pybind11::arg("student"),
        pybind11::kw_only(), pybind11::arg("normalize") = true, pybind11::arg("first_row") = 0,
        pybind11::arg("num_rows") = pybind11::none());
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
        pybind11::arg("normalize") = true, pybind11::arg("reduction") = "mean", pybind11::arg("keep_gradient") = false,
        pybind11::arg("part") = 0, pybind11::arg("parts") = 1);
  m.def("fused_hsd_loss", deepclust::fused_hsd_loss, pybind11::arg("teacher"), pybind11::arg("student"),
        pybind11::kw_only(), pybind11::arg("temperature") = 0.5, pybind11::arg("normalize") = true,
        pybind11::arg("reduction") = "mean");
  m.def("kmeans_assign", deepclust::kmeans_assign, pybind11::arg("features"), pybind11::arg("centroids"),
        pybind11::kw_only(), pybind11::arg("metric") = "euclidean");
  m.def("kmeans_seed", deepclust::kmeans_seed, pybind11::arg("features"), pybind11::arg("uniform"), pybind11::kw_only(),
        pybind11::arg("metric") = "euclidean", pybind11::arg("weights") = pybind11::none());
  m.def("nearest_neighbors", deepclust::nearest_neighbors, pybind11::arg("query"), pybind11::arg("bank"),
        pybind11::kw_only(), pybind11::arg("k"), pybind11::arg("exclude") = pybind11::none(),
        pybind11::arg("valid") = pybind11::none());
  m.def("sinkhorn_knopp", deepclust::sinkhorn_knopp, pybind11::arg("scores"), pybind11::kw_only(),
        pybind11::arg("epsilon") = 0.05, pybind11::arg("num_iters") = 3,
        pybind11::arg("sample_marginals") = pybind11::none(), pybind11::arg("cluster_marginals") = pybind11::none(),
        pybind11::arg("tolerance") = pybind11::none(), pybind11::arg("differentiable") = false);
}

#include "kmeans/kmeans_assign.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include "core/cuda/context.h"
#include "core/cuda/types.h"
#include "kmeans/cuda/kmeans_assign.cuh"

namespace deepclust {
namespace {

std::tuple<at::Tensor, at::Tensor> kmeans_assign_cuda(const at::Tensor& features,   // (N, D)
                                                      const at::Tensor& centroids,  // (K, D)
                                                      std::string_view metric) {
  check_kmeans_assign(features, centroids, metric);
  const DeviceScope device(features);
  const at::Tensor rows = features.contiguous(), columns = centroids.contiguous();
  const at::TensorOptions options = rows.options();
  const at::Tensor labels = at::empty({rows.size(0)}, options.dtype(at::kLong));
  const at::Tensor distances = at::empty({rows.size(0)}, options);
  if (rows.size(0) == 0) return {labels, distances};
  const KmeansAssignInputs inputs{element_type(rows), rows.size(0),          columns.size(0),
                                  rows.size(1),       rows.const_data_ptr(), columns.const_data_ptr(),
                                  metric == "cosine"};
  const KmeansAssignPlan plan = plan_kmeans_assign(inputs, device::multiprocessor_count());
  const DeviceMemory<KmeansAssignWorkspace> memory(kmeans_assign_bytes(inputs, plan), options);
  check_launch(launch_kmeans_assign(inputs, plan, memory.workspace(), labels.mutable_data_ptr<int64_t>(),
                                    distances.mutable_data_ptr(), device.stream()));
  return {labels, distances};
}

std::tuple<at::Tensor, at::Tensor> kmeans_update_cuda(const at::Tensor& features,      // (N, D)
                                                      const at::Tensor& labels_input,  // (N,) int64
                                                      int64_t num_clusters) {
  check_kmeans_update(features, labels_input, num_clusters);
  const DeviceScope device(features);
  const at::Tensor rows = features.contiguous(), labels = labels_input.contiguous();
  const at::TensorOptions wide = rows.options().dtype(accumulation_dtype(rows));
  const at::Tensor sums = at::empty({num_clusters, rows.size(1)}, wide);
  const at::Tensor counts = at::empty({num_clusters}, wide.dtype(at::kLong));
  const KmeansUpdateInputs inputs{element_type(rows), rows.size(0),          num_clusters,
                                  rows.size(1),       rows.const_data_ptr(), labels.const_data_ptr<int64_t>()};
  const DeviceMemory<KmeansUpdateWorkspace> memory(kmeans_update_bytes(inputs), wide);
  check_launch(launch_kmeans_update(inputs, memory.workspace(), sums.mutable_data_ptr(),
                                    counts.mutable_data_ptr<int64_t>(), device.stream()));
  return {sums, counts};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> kmeans_step_cuda(const at::Tensor& features,   // (N, D)
                                                                            const at::Tensor& centroids,  // (K, D)
                                                                            std::string_view metric) {
  const at::Tensor labels = std::get<0>(kmeans_assign_cuda(features, centroids, metric));
  const auto [sums, counts] = kmeans_update_cuda(features, labels, centroids.size(0));
  const at::Tensor old = centroids.to(sums.scalar_type());
  const at::Tensor sizes = metric == "cosine" ? sums.norm(2, 1, true) : counts.unsqueeze(1);
  const at::Tensor centers = at::where(sizes > 0, sums / sizes, old);
  const at::Tensor shift = (centers.to(at::kDouble) - old.to(at::kDouble)).square_().sum();
  const at::Tensor empty = (counts == 0).sum().to(at::kDouble);
  return {labels, centers, counts, at::stack({shift, empty})};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) {
  m.impl("kmeans_assign", kmeans_assign_cuda);
  m.impl("kmeans_update", kmeans_update_cuda);
  m.impl("kmeans_step", kmeans_step_cuda);
}

}  // namespace deepclust

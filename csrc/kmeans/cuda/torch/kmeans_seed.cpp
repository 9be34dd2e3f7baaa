#include "kmeans/kmeans_seed.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "core/cuda/context.h"
#include "core/cuda/types.h"
#include "kmeans/cuda/kmeans_seed.cuh"

namespace deepclust {
namespace {

at::Tensor kmeans_seed_cuda(const at::Tensor& features,       // (N, D)
                            const at::Tensor& uniform_input,  // (K, C)
                            std::string_view metric,
                            const std::optional<at::Tensor>& weights_input  // (N,)
) {
  check_kmeans_seed(features, uniform_input, metric, weights_input);
  const DeviceScope device(features);
  const at::Tensor rows = features.contiguous(), uniform = uniform_input.contiguous();
  const at::Tensor weights = weights_input ? weights_input->contiguous() : at::Tensor();
  const at::Tensor places = at::empty({uniform.size(0)}, rows.options().dtype(at::kLong));
  KmeansSeedInputs inputs{};
  inputs.type = element_type(rows);
  inputs.count = rows.size(0);
  inputs.depth = rows.size(1);
  inputs.centers = uniform.size(0);
  inputs.candidates = uniform.size(1);
  inputs.features = rows.const_data_ptr();
  inputs.uniform = uniform.const_data_ptr<double>();
  inputs.weights = weights_input ? weights.const_data_ptr<double>() : nullptr;
  inputs.cosine = metric == "cosine";
  const KmeansSeedPlan plan = plan_kmeans_seed(inputs, device::multiprocessor_count());
  const DeviceMemory<KmeansSeedWorkspace> memory(kmeans_seed_bytes(inputs, plan), rows.options());
  check_launch(
      launch_kmeans_seed(inputs, plan, memory.workspace(), places.mutable_data_ptr<int64_t>(), device.stream()));
  return places;
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) { m.impl("kmeans_seed", kmeans_seed_cuda); }

}  // namespace deepclust

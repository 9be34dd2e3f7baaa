#include "neighbors/nearest_neighbors.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>

#include "core/cuda/context.h"
#include "core/cuda/types.h"
#include "neighbors/cuda/nearest_neighbors.cuh"

namespace deepclust {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor> nearest_neighbors_cuda(const at::Tensor& query_input,        // (B, D)
                                                          const at::Tensor& bank_input,         // (M, D)
                                                          int64_t k,                            //
                                                          const OptionalTensor& exclude_input,  // (B,) int64
                                                          const OptionalTensor& valid_input     // (M,) bool
) {
  check_nearest_neighbors(query_input, bank_input, k, exclude_input, valid_input);
  for (const auto& [name, tensor] : {std::pair{"query", &query_input}, std::pair{"bank", &bank_input}}) {
    TORCH_CHECK_VALUE(tensor->size(0) <= std::numeric_limits<int32_t>::max(), name,
                      ": expected at most 2^31 - 1 rows, got ", tensor->size(0));
  }
  const DeviceScope device(query_input);
  const at::Tensor query = query_input.contiguous(), bank = bank_input.contiguous();
  const at::Tensor exclude = exclude_input ? exclude_input->contiguous() : at::Tensor();
  const at::Tensor valid = valid_input ? valid_input->contiguous() : at::Tensor();
  const int64_t queries = query.size(0);
  const at::Tensor cosines = at::empty({queries, k}, query.options());
  const at::Tensor indices = at::empty({queries, k}, query.options().dtype(at::kLong));
  if (queries == 0) return {cosines, indices};
  const NeighborsPlan plan = plan_nearest_neighbors(element_type(query), queries, bank.size(0), query.size(1),
                                                    static_cast<int>(k), device::multiprocessor_count());
  const DeviceMemory<NeighborsWorkspace> memory(neighbors_bytes(plan), query.options());
  const NeighborsInputs inputs{query.const_data_ptr(), bank.const_data_ptr(),
                               exclude.defined() ? exclude.const_data_ptr<int64_t>() : nullptr,
                               valid.defined() ? valid.const_data_ptr<bool>() : nullptr};
  check_launch(launch_nearest_neighbors(plan, inputs, memory.workspace(), cosines.mutable_data_ptr(),
                                        indices.mutable_data_ptr<int64_t>(), device.stream()));
  return {cosines, indices};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) { m.impl("nearest_neighbors", nearest_neighbors_cuda); }

}  // namespace deepclust

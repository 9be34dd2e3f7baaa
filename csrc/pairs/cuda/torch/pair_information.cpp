#include "pairs/pair_information.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "core/cuda/context.h"
#include "core/cuda/types.h"
#include "pairs/cuda/pair_information.cuh"

namespace deepclust {
namespace {

at::Tensor pair_information_cuda(const at::Tensor& features /* (N, D) */) {
  check_pair_information(features);
  const DeviceScope device(features);
  const at::Tensor input = features.contiguous();
  const at::Tensor squared = at::empty(input.sizes(), input.options());
  if (input.numel() == 0) return squared;
  const PairInformationInputs inputs{element_type(input), input.numel(), input.const_data_ptr(), nullptr};
  check_launch(launch_pair_information(inputs, squared.mutable_data_ptr(), device.stream()));
  return squared;
}

at::Tensor pair_information_backward_cuda(const at::Tensor& grad_squared,  // (N, D)
                                          const at::Tensor& features       // (N, D)
) {
  const DeviceScope device(features);
  const at::Tensor grad = grad_squared.contiguous(), input = features.contiguous();
  const at::Tensor grad_features = at::empty(input.sizes(), input.options());
  if (input.numel() == 0) return grad_features;
  const PairInformationInputs inputs{element_type(input), input.numel(), input.const_data_ptr(), grad.const_data_ptr()};
  check_launch(launch_pair_information(inputs, grad_features.mutable_data_ptr(), device.stream()));
  return grad_features;
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, DEEPCLUST_CUDA_KEY, m) {
  m.impl("pair_information", pair_information_cuda);
  m.impl("pair_information_backward", pair_information_backward_cuda);
}

}  // namespace deepclust

// Elements are independent: threads take ranges of them, and compilers make vectors of the loop.
#include "pairs/pair_information.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstdint>

#include "core/dtypes.h"

namespace deepclust {
namespace {

constexpr int64_t kElementsPerTask = 32768;

template <typename F>
void for_elements(int64_t count, const F& f) {
  at::parallel_for(0, count, kElementsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

template <typename T>
void square(const at::Tensor& input, const at::Tensor& output) {
  const T* x = input.const_data_ptr<T>();
  T* y = output.mutable_data_ptr<T>();
  for_elements(input.numel(), [=](int64_t i) { y[i] = x[i] * x[i]; });
}

template <typename T>
void square_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& grad_input) {
  const T* grad_y = grad_output.const_data_ptr<T>();
  const T* x = input.const_data_ptr<T>();
  T* grad_x = grad_input.mutable_data_ptr<T>();
  for_elements(input.numel(), [=](int64_t i) { grad_x[i] = 2 * x[i] * grad_y[i]; });
}

at::Tensor pair_information_cpu(const at::Tensor& features /* (N, D) */) {
  check_pair_information(features);
  const at::Tensor input = to_accumulation(features);
  const at::Tensor squared = at::empty(input.sizes(), input.options());
  const auto run = input.scalar_type() == at::kDouble ? square<double> : square<float>;
  run(input, squared);
  return to_dtype(squared, features.scalar_type());
}

at::Tensor pair_information_backward_cpu(const at::Tensor& grad_squared,  // (N, D)
                                         const at::Tensor& features       // (N, D)
) {
  const at::Tensor input = to_accumulation(features);
  const at::Tensor grad_features = at::empty(input.sizes(), input.options());
  const auto run = input.scalar_type() == at::kDouble ? square_backward<double> : square_backward<float>;
  run(to_accumulation(grad_squared), input, grad_features);
  return to_dtype(grad_features, features.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("pair_information", pair_information_cpu);
  m.impl("pair_information_backward", pair_information_backward_cpu);
}

}  // namespace deepclust

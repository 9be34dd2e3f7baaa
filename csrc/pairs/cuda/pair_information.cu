#include "pairs/cuda/pair_information.cuh"

#include "core/cuda/element_type.cuh"
#include "core/cuda/numeric.cuh"
#include "core/host_device.h"

namespace deepclust {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 65536;  // of more elements a thread takes several

template <class Element>
__global__ void __launch_bounds__(kThreads)
    pair_information_kernel(const Element* features /* (count,) */, const Element* grad_squared /* (count,) or null */,
                            int64_t count, Element* results /* (count,) */) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += int64_t{gridDim.x} * kThreads) {
    const Widened<Element> x = widen(features[i]);
    results[i] = narrow<Element>(grad_squared == nullptr ? x * x : 2 * x * widen(grad_squared[i]));
  }
}

}  // namespace

cudaError_t launch_pair_information(const PairInformationInputs& inputs, void* results, cudaStream_t stream) {
  const int64_t blocks = smaller(divide_up(inputs.count, kThreads), kMostBlocks);
  return for_element_type(inputs.type, [&](auto element) {
    using Element = decltype(element);
    return device::launch(pair_information_kernel<Element>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                          stream, static_cast<const Element*>(inputs.features),
                          static_cast<const Element*>(inputs.grad_squared), inputs.count,
                          static_cast<Element*>(results));
  });
}

}  // namespace deepclust

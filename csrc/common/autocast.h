// Autocast policy of every op here: compare in float32, as torch does for cdist and the losses. Half-precision and
// float32 inputs are cast to float32, float64 stays.
#pragma once

#include <ATen/autocast_mode.h>

namespace deepclust {

inline at::Tensor autocast_to_float(const at::Tensor& tensor, c10::DeviceType device) {
  return at::autocast::cached_cast(at::kFloat, tensor, device);
}

}  // namespace deepclust

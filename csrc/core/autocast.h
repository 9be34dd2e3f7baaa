// Autocast policy of every op here: compare in float32, as torch does for cdist and the losses. Half-precision and
// float32 inputs are cast to float32, float64 and what is not floating stays.
#pragma once

#include <ATen/autocast_mode.h>
#include <torch/library.h>

namespace deepclust {

template <auto* kOp, c10::DeviceType kDevice>
constexpr auto autocast_entry =
    &at::autocast::WrapFunction<at::autocast::CastPolicy::fp32, kDevice, std::remove_pointer_t<decltype(kOp)>,
                                std::remove_pointer_t<decltype(kOp)>, kOp>::type::call;

}  // namespace deepclust

// Registers the entries of an op for both devices.
#define DEEPCLUST_AUTOCAST(op)                                                                                 \
  TORCH_LIBRARY_IMPL(deepclust_ext, AutocastCPU, m) { m.impl(#op, autocast_entry<op, c10::DeviceType::CPU>); } \
  TORCH_LIBRARY_IMPL(deepclust_ext, AutocastCUDA, m) { m.impl(#op, autocast_entry<op, c10::DeviceType::CUDA>); }

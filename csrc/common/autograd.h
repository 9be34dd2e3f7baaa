// What the autograd entries of the ops share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

namespace deepclust {

// Whether the call must be recorded; skipping the graph node otherwise saves small calls a good part of their time.
// Forward-mode tangents count: the node is what refuses them.
template <class... Tensors>
bool needs_graph(const Tensors&... inputs) {
  const bool enabled = at::GradMode::is_enabled();
  const auto counts = [enabled](const at::Tensor& x) {
    return x.defined() && ((enabled && x.requires_grad()) || x._fw_grad(0).defined());
  };
  return (counts(inputs) || ...);
}

}  // namespace deepclust

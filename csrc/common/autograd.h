// What the autograd entries of the ops share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

namespace deepclust {

// Whether the call must be recorded; skipping the graph node otherwise saves small calls a good part of their time.
// Forward-mode tangents count: the node is what refuses them.
inline bool needs_graph(const at::Tensor& first, const at::Tensor& second) {
  return (at::GradMode::is_enabled() && (first.requires_grad() || second.requires_grad())) ||
         first._fw_grad(0).defined() || second._fw_grad(0).defined();
}

}  // namespace deepclust

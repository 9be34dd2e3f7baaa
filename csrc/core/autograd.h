// What the autograd entries of the ops share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <optional>

namespace deepclust {

inline at::Tensor or_undefined(const std::optional<at::Tensor>& tensor) { return tensor ? *tensor : at::Tensor(); }

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

// For ops whose outputs are constants: a forward-mode tangent would vanish without a word.
template <class... Tensors>
void check_no_tangent(const char* op, const Tensors&... inputs) {
  TORCH_CHECK_NOT_IMPLEMENTED(!((inputs.defined() && inputs._fw_grad(0).defined()) || ...), op,
                              ": has no forward-mode derivative");
}

}  // namespace deepclust

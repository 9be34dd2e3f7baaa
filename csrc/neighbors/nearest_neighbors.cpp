#include "neighbors/nearest_neighbors.h"

#include <torch/library.h>

#include <utility>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"

namespace deepclust {

using OptionalTensor = std::optional<at::Tensor>;

void check_nearest_neighbors(const at::Tensor& query, const at::Tensor& bank, int64_t k, const OptionalTensor& exclude,
                             const OptionalTensor& valid) {
  check_query_and_bank(query, bank, exclude, valid);
  TORCH_CHECK_VALUE(k >= 1 && k <= kMaxNeighbors, "k: expected 1 to ", kMaxNeighbors, ", got ", k);
}

std::tuple<at::Tensor, at::Tensor> nearest_neighbors(const at::Tensor& query, const at::Tensor& bank, c10::SymInt k,
                                                     const OptionalTensor& exclude, const OptionalTensor& valid) {
  static const auto op = find_op<decltype(nearest_neighbors)>("deepclust_ext::nearest_neighbors");
  return op.call(query, bank, std::move(k), exclude, valid);
}

namespace {

std::tuple<at::Tensor, at::Tensor> nearest_neighbors_autograd(const at::Tensor& query, const at::Tensor& bank,
                                                              c10::SymInt k, const OptionalTensor& exclude,
                                                              const OptionalTensor& valid) {
  check_no_tangent("nearest_neighbors", query, bank);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return nearest_neighbors(query, bank, std::move(k), exclude, valid);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "nearest_neighbors(Tensor query, Tensor bank, SymInt k, Tensor? exclude=None, Tensor? valid=None) -> "
      "(Tensor cosines, Tensor indices)");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) { m.impl("nearest_neighbors", nearest_neighbors_autograd); }

DEEPCLUST_AUTOCAST(nearest_neighbors)

}  // namespace deepclust

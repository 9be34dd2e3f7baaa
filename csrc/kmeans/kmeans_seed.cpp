#include "kmeans/kmeans_seed.h"

#include <torch/library.h>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"

namespace deepclust {

using OptionalTensor = std::optional<at::Tensor>;

void check_kmeans_seed(const at::Tensor& features, const at::Tensor& uniform, std::string_view metric,
                       const OptionalTensor& weights) {
  TORCH_CHECK_VALUE(features.dim() == 2 && features.sym_size(0) > 0 && features.sym_size(1) > 0,
                    "features: expected shape (N, D) with N > 0 and D > 0, got ", features.sym_sizes());
  check_dtype(features, "features");
  TORCH_CHECK_VALUE(uniform.dim() == 2 && uniform.sym_size(0) > 0 && uniform.sym_size(1) > 0,
                    "uniform: expected shape (K, C) with K > 0 and C > 0, got ", uniform.sym_sizes());
  TORCH_CHECK_TYPE(uniform.scalar_type() == at::kDouble, "uniform: expected dtype Double, got ", uniform.scalar_type());
  TORCH_CHECK_VALUE(uniform.device() == features.device(), "uniform: expected device ", features.device(),
                    " like features, got ", uniform.device());
  TORCH_CHECK_VALUE(metric == "euclidean" || metric == "cosine", "metric: expected 'euclidean' or 'cosine', got '",
                    metric, "'");
  if (!weights) return;
  TORCH_CHECK_VALUE(weights->dim() == 1 && weights->sym_size(0) == features.sym_size(0), "weights: expected shape [",
                    features.sym_size(0), "], one for each row of features, got ", weights->sym_sizes());
  TORCH_CHECK_TYPE(weights->scalar_type() == at::kDouble, "weights: expected dtype Double, got ",
                   weights->scalar_type());
  TORCH_CHECK_VALUE(weights->device() == features.device(), "weights: expected device ", features.device(),
                    " like features, got ", weights->device());
}

at::Tensor kmeans_seed(const at::Tensor& features, const at::Tensor& uniform, std::string_view metric,
                       const OptionalTensor& weights) {
  static const auto op = find_op<decltype(kmeans_seed)>("deepclust_ext::kmeans_seed");
  return op.call(features, uniform, metric, weights);
}

namespace {

at::Tensor kmeans_seed_autograd(const at::Tensor& features, const at::Tensor& uniform, std::string_view metric,
                                const OptionalTensor& weights) {
  check_no_tangent("kmeans_seed", features, uniform, or_undefined(weights));
  const at::AutoDispatchBelowADInplaceOrView guard;
  return kmeans_seed(features, uniform, metric, weights);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def("kmeans_seed(Tensor features, Tensor uniform, str metric='euclidean', Tensor? weights=None) -> Tensor places");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) { m.impl("kmeans_seed", kmeans_seed_autograd); }

DEEPCLUST_AUTOCAST(kmeans_seed)

}  // namespace deepclust

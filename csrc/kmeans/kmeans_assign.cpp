#include "kmeans/kmeans_assign.h"

#include <torch/library.h>

#include <limits>
#include <utility>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"

namespace deepclust {

namespace {

void check_features(const at::Tensor& features) {
  TORCH_CHECK_VALUE(features.dim() == 2 && features.sym_size(1) > 0, "features: expected shape (N, D) with D > 0, got ",
                    features.sym_sizes());
  check_dtype(features, "features");
}

}  // namespace

void check_kmeans_assign(const at::Tensor& features, const at::Tensor& centroids, std::string_view metric) {
  check_features(features);
  TORCH_CHECK_VALUE(centroids.dim() == 2 && centroids.sym_size(0) > 0,
                    "centroids: expected shape (K, D) with K > 0, got ", centroids.sym_sizes());
  TORCH_CHECK_VALUE(centroids.sym_size(0) <= std::numeric_limits<int32_t>::max(),
                    "centroids: expected at most 2^31 - 1 rows, got ", centroids.sym_size(0));
  check_like(centroids, features, "centroids", "features", centroids.sym_size(0), features.sym_size(1));
  TORCH_CHECK_VALUE(metric == "euclidean" || metric == "cosine", "metric: expected 'euclidean' or 'cosine', got '",
                    metric, "'");
}

void check_kmeans_update(const at::Tensor& features, const at::Tensor& labels, int64_t num_clusters) {
  check_features(features);
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.sym_size(0) == features.sym_size(0), "labels: expected shape [",
                    features.sym_size(0), "], one for each row of features, got ", labels.sym_sizes());
  TORCH_CHECK_TYPE(labels.scalar_type() == at::kLong, "labels: expected dtype Long, got ", labels.scalar_type());
  TORCH_CHECK_VALUE(labels.device() == features.device(), "labels: expected device ", features.device(),
                    " like features, got ", labels.device());
  TORCH_CHECK_VALUE(num_clusters >= 1, "num_clusters: expected at least 1, got ", num_clusters);
}

std::tuple<at::Tensor, at::Tensor> kmeans_assign(const at::Tensor& features, const at::Tensor& centroids,
                                                 std::string_view metric) {
  static const auto op = find_op<decltype(kmeans_assign)>("deepclust_ext::kmeans_assign");
  return op.call(features, centroids, metric);
}

std::tuple<at::Tensor, at::Tensor> kmeans_update(const at::Tensor& features, const at::Tensor& labels,
                                                 c10::SymInt num_clusters) {
  static const auto op = find_op<decltype(kmeans_update)>("deepclust_ext::kmeans_update");
  return op.call(features, labels, std::move(num_clusters));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> kmeans_step(const at::Tensor& features,
                                                                       const at::Tensor& centroids,
                                                                       std::string_view metric) {
  static const auto op = find_op<decltype(kmeans_step)>("deepclust_ext::kmeans_step");
  return op.call(features, centroids, metric);
}

namespace {

std::tuple<at::Tensor, at::Tensor> kmeans_assign_autograd(const at::Tensor& features, const at::Tensor& centroids,
                                                          std::string_view metric) {
  check_no_tangent("kmeans_assign", features, centroids);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return kmeans_assign(features, centroids, metric);
}

std::tuple<at::Tensor, at::Tensor> kmeans_update_autograd(const at::Tensor& features, const at::Tensor& labels,
                                                          c10::SymInt num_clusters) {
  check_no_tangent("kmeans_update", features);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return kmeans_update(features, labels, std::move(num_clusters));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> kmeans_step_autograd(const at::Tensor& features,
                                                                                const at::Tensor& centroids,
                                                                                std::string_view metric) {
  check_no_tangent("kmeans_step", features, centroids);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return kmeans_step(features, centroids, metric);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "kmeans_assign(Tensor features, Tensor centroids, str metric='euclidean') -> (Tensor labels, Tensor distances)");
  m.def("kmeans_update(Tensor features, Tensor labels, SymInt num_clusters) -> (Tensor sums, Tensor counts)");
  m.def(
      "kmeans_step(Tensor features, Tensor centroids, str metric='euclidean') -> (Tensor labels, Tensor centers, "
      "Tensor counts, Tensor change)");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) {
  m.impl("kmeans_assign", kmeans_assign_autograd);
  m.impl("kmeans_update", kmeans_update_autograd);
  m.impl("kmeans_step", kmeans_step_autograd);
}

DEEPCLUST_AUTOCAST(kmeans_assign)
DEEPCLUST_AUTOCAST(kmeans_step)

}  // namespace deepclust

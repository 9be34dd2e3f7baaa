// kmeans_assign: the nearest of K centroids for every row. kmeans_update: sums and sizes of the clusters. kmeans_step:
// an iteration of both.
//
// metric "euclidean": label_i = argmin_c |x_i - y_c|, distance_i = |x_i - y_c|, summed over squared differences.
// metric "cosine": label_i = argmin_c of, and distance_i = 1 - x_i.y_c / (max(|x_i|, 1e-12) max(|y_c|, 1e-12)).
//
// Ties go to the lowest index. A row with NaN or Inf has label -1 and distance NaN; NaN or Inf in a centroid gives that
// to all rows. Finite inputs of any size are compared correctly, also where their squares leave the range of the type.
// float16 and bfloat16 are computed in float32. The outputs are constants: no gradient reaches the inputs, and
// forward-mode tangents are an error. Deterministic, independent of the thread count; nothing of size N x K is kept.
// Offsets are 64-bit.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <string_view>
#include <tuple>

namespace deepclust {

// labels (N,) int64, distances (N,) in the input dtype
std::tuple<at::Tensor, at::Tensor> kmeans_assign(const at::Tensor& features,   // (N, D)
                                                 const at::Tensor& centroids,  // (K, D), K > 0
                                                 std::string_view metric);

void check_kmeans_assign(const at::Tensor& features, const at::Tensor& centroids, std::string_view metric);

// sums (num_clusters, D) in the accumulation dtype and counts (num_clusters,) int64 of the rows of each label, added in
// an order that depends on the sizes alone; rows whose label is not in [0, num_clusters) are left out.
std::tuple<at::Tensor, at::Tensor> kmeans_update(const at::Tensor& features,  // (N, D)
                                                 const at::Tensor& labels,    // (N,) int64
                                                 c10::SymInt num_clusters);

// One of Lloyd's iterations: labels as by kmeans_assign; centers (K, D) in the accumulation dtype, the means of their
// rows or for the cosine their unit sums, and the old ones where there is no row; counts (K,) int64; change (2,)
// float64, the squared distance of the centers from the old ones, and how many clusters have no row.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> kmeans_step(const at::Tensor& features,   // (N, D)
                                                                       const at::Tensor& centroids,  // (K, D), K > 0
                                                                       std::string_view metric);

void check_kmeans_update(const at::Tensor& features, const at::Tensor& labels, int64_t num_clusters);

}  // namespace deepclust

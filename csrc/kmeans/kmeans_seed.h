// kmeans_seed: the first centers of k-means by greedy k-means++ (Arthur and Vassilvitskii, 2007, with the several
// candidates of their conclusion), from given random numbers.
//
// d_i = distance of row i from the nearest row chosen so far, as kmeans_assign returns it, and its cost
//     c_i = weight_i d_i^2 ("euclidean")   or   weight_i max(d_i, 0) ("cosine"), in float64.
// Costs become integers, q_i = floor(scale c_i), of one scale for all rows, 2^(62 - bits of N) over the largest cost,
// so that their sum S fits int64. A number u draws the first row whose running sum of q exceeds floor(u S), else the
// last one. Row 0 of `uniform` draws the first center: by weights, without them floor(u N). Each other row draws C
// candidates; the one that leaves the least sum of integer costs, by the scale before it, is chosen, ties to the first.
//
// So sums are exact in any order, and the result does not depend on the thread count. A NaN or Inf in a row gives -1 in
// all places; rows whose squared distances overflow are not supported. Kept are a copy of the rows, what is of size N,
// and on CUDA distances of size N C; nothing of size N x K. The output is a constant. Offsets are 64-bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace deepclust {

// places (K,) int64 of the chosen rows, in the order of choice
at::Tensor kmeans_seed(const at::Tensor& features,  // (N, D), N > 0
                       const at::Tensor& uniform,   // (K, C) float64 in [0, 1), K > 0, C > 0
                       std::string_view metric,
                       const std::optional<at::Tensor>& weights  // (N,) float64, none negative, one above 0
);

void check_kmeans_seed(const at::Tensor& features, const at::Tensor& uniform, std::string_view metric,
                       const std::optional<at::Tensor>& weights);

}  // namespace deepclust

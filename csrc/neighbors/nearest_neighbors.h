// nearest_neighbors: the k rows of a bank that are nearest to each query by cosine.
//
//     cosine(q, x) = q.x / (max(|q|, 1e-12) max(|x|, 1e-12))
//
// Candidates of query i are the rows j of the bank with valid[j] and j != exclude[i]; rows that are not valid may hold
// anything. Sorted by cosine descending, ties to the lowest index; where there are fewer than k candidates, the rest
// has index -1 and cosine -inf. NaN or Inf in a query: its cosines NaN, its indices -1; in a valid row of the bank: all
// of them. Cosines are computed in float32, for float64 in float64, or more exactly.
// The outputs are constants: no gradient reaches the inputs, and forward-mode tangents are an error. Deterministic,
// independent of the thread count; the bank is streamed, nothing of size B x M is kept. Offsets are 64-bit.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <tuple>

namespace deepclust {

constexpr int64_t kMaxNeighbors = 256;

// cosines (B, k) in the input dtype, indices (B, k) int64
std::tuple<at::Tensor, at::Tensor> nearest_neighbors(const at::Tensor& query,                   // (B, D)
                                                     const at::Tensor& bank,                    // (M, D)
                                                     c10::SymInt k,                             // 1 ... kMaxNeighbors
                                                     const std::optional<at::Tensor>& exclude,  // (B,) int64, -1: none
                                                     const std::optional<at::Tensor>& valid     // (M,) bool
);

void check_nearest_neighbors(const at::Tensor& query, const at::Tensor& bank, int64_t k,
                             const std::optional<at::Tensor>& exclude, const std::optional<at::Tensor>& valid);

}  // namespace deepclust

// Last kernel of the contrastive loss' backward pass: from sums over columns to the gradients of the inputs.
#pragma once

#include <cmath>
#include <cstdint>

#include "contrastive/cuda/contrastive_rows.cuh"
#include "core/constants.h"
#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"

namespace deepclust::contrastive {

// A block has 8 warps with 4 rows each. So it finds out only once for 32 rows whether all inputs are finite.
constexpr int kFinishThreads = 256;
constexpr int kRowsPerFinishBlock = 32;

template <class P>
struct ContrastiveFinishArguments {
  using T = typename P::Accumulator;
  ContrastiveArguments<P> packed;
  struct Owners {
    const T* sums;  // (splits, count, row_depth)
    int64_t first_row, count;
    int splits;
  } owners[2];
  const T* anchor_values;  // (kContrastiveValues, anchors), see ContrastiveGradientArguments
  void* gradient[kContrastiveInputs];
};

// Computes the gradient of one row of the inputs, by a warp. First the gradient g of the packed row: the sums that the
// kernel before has left, plus the part of its positive pair. Then through the scaling and the normalization
// n = x / max(|x|, 1e-12), whose gradient is (g - n (n.g)) / |x|, or 0 for a row that is shorter than 1e-12.
template <class P, class Input>
__device__ void finish_row(const ContrastiveFinishArguments<P>& in, const ContrastiveInputs& inputs, int64_t row,
                           bool finite) {
  using T = typename P::Accumulator;
  const ContrastiveArguments<P>& packed = in.packed;
  // Step 1: which input the row belongs to, and where its gradients go.
  const int group = row < packed.batch ? kViewA : row < 2 * packed.batch ? kViewB : kQueue;
  const int64_t index = row - group * packed.batch;
  Input* gradient = static_cast<Input*>(in.gradient[group == kQueue ? 4 : group]);
  Input* class_gradient = static_cast<Input*>(in.gradient[group == kQueue ? 5 : 2 + group]);
  if (gradient == nullptr && class_gradient == nullptr) return;
  // Step 2: dloss/ds of the positive pair. With two views both of its rows are anchors, and the slopes add up.
  T pair_slope = 0;
  if (group != kQueue) {
    const T* slopes = in.anchor_values + kPositiveSlope * packed.anchors;
    pair_slope = packed.two_views ? slopes[index] + slopes[packed.batch + index] : slopes[index];
  }
  const int64_t partner = group == kViewA ? row + packed.batch : row - packed.batch;
  // Step 3: the gradient by element k of the packed row, g_k: sums over columns, added split by split, and the part of
  // the positive pair, slope times the partner's element.
  const auto sum_of = [&](int64_t k) {
    T sum = 0;
    for (const auto& owners : in.owners) {
      const int64_t own = row - owners.first_row;
      if (own < 0 || own >= owners.count) continue;
      for (int split = 0; split < owners.splits; ++split) {
        sum += owners.sums[(split * owners.count + own) * packed.row_depth + k];
      }
    }
    if (group != kQueue) sum += pair_slope * packed.value(partner, k);
    return sum;
  };
  const T nan = Limits<T>::kNan;
  const int lane = threadIdx.x % 32;
  // Step 4, for features: through 1 / sqrt(temperature) and the normalization. `along` is n.g.
  if (gradient != nullptr) {
    const Input* z = static_cast<const Input*>(inputs.features[group]) + index * inputs.depth;
    const T inverse_norm = packed.inverse_norm[row];
    T along = 0;
    if (finite && inputs.normalize) {
      for (int64_t k = lane; k < inputs.depth; k += 32) along += widen(z[k]) * inverse_norm * sum_of(k);
      along = warp_sum(along);
    }
    const bool is_short = inputs.normalize && !(inverse_norm < T(1 / kMinNorm));  // gradient 0
    const T factor = is_short ? T(0) : inverse_norm * static_cast<T>(1 / sqrt(inputs.options.temperature));
    for (int64_t k = lane; k < inputs.depth; k += 32) {
      const T value = finite ? (sum_of(k) - widen(z[k]) * inverse_norm * along) * factor : nan;
      gradient[index * inputs.depth + k] = narrow<Input>(value);
    }
  }
  // Step 4, for class vectors: through 1 / sqrt(class_temperature).
  if (class_gradient != nullptr) {
    const T factor = static_cast<T>(1 / sqrt(inputs.options.class_temperature));
    for (int64_t k = lane; k < inputs.classes; k += 32) {
      const T value = finite ? sum_of(inputs.depth + k) * factor : nan;
      class_gradient[index * inputs.classes + k] = narrow<Input>(value);
    }
  }
}

template <class P, class Input>
__global__ void __launch_bounds__(kFinishThreads, 4)
    finish_gradient_kernel(const ContrastiveFinishArguments<P> in, const ContrastiveInputs inputs) {
  using T = typename P::Accumulator;
  const T squares = largest_of<kFinishThreads / 32>(in.packed.largest_squares, in.packed.prepare_blocks);
  const bool finite = squares <= Limits<T>::kMax;
  const int64_t first = int64_t{blockIdx.x} * kRowsPerFinishBlock;
  for (int r = threadIdx.x / 32; r < kRowsPerFinishBlock; r += kFinishThreads / 32) {
    if (first + r < in.packed.rows) finish_row<P, Input>(in, inputs, first + r, finite);
  }
}

}  // namespace deepclust::contrastive

// Second kernel of the contrastive loss: log-sum-exps of every anchor over its negatives, then the losses.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "contrastive/contrastive_row.h"
#include "contrastive/cuda/contrastive_rows.cuh"
#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"
#include "core/host_device.h"

namespace deepclust::contrastive {

// sum exp((1 + hardness) (s - largest)) and sum exp(hardness (s - largest)) over some negatives of a row.
template <class T>
struct ExpSums {
  T largest;  // 0 where scores are bounded
  T sum;
  T weight_sum;
};

template <class P>
struct ContrastiveLossArguments {
  using T = typename P::Accumulator;
  ContrastiveArguments<P> packed;
  ExpSums<T>* partial;  // (splits, anchors)
  unsigned* tickets;    // (row_blocks + 1,)
  double* sums;         // (row_blocks,)
  T* row_values;        // (kContrastiveValues, anchors)
  void* loss;           // (anchors,) or ()
  ElementType type;     // of the loss
  LossReduction reduction;
  ContrastiveOptions options;
  int64_t first_column, columns;
  int row_blocks, splits;
};

__device__ __forceinline__ void store_as(ElementType type, void* target, int64_t i, double value) {
  switch (type) {
    case ElementType::kF32:
      static_cast<float*>(target)[i] = static_cast<float>(value);
      return;
    case ElementType::kF64:
      static_cast<double*>(target)[i] = value;
      return;
    case ElementType::kF16:
      static_cast<__half*>(target)[i] = narrow<__half>(static_cast<float>(value));
      return;
    case ElementType::kBf16:
      static_cast<__nv_bfloat16*>(target)[i] = narrow<__nv_bfloat16>(static_cast<float>(value));
      return;
  }
}

// Row functor: every lane sums over its own columns.
template <class P, int kWarps>
struct SumExps {
  using Gemm = TileGemm<P, kWarps, 1>;
  using T = typename P::Accumulator;

  const ContrastiveLossArguments<P>& in;
  int64_t first_row;
  bool bounded;
  T scale[2];  // of the lane's two rows
  ExpSums<T> sums[2];

  __device__ __forceinline__ SumExps(const ContrastiveLossArguments<P>& arguments, int64_t first, bool is_bounded)
      : in(arguments), first_row(first), bounded(is_bounded) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t i = first_row + Gemm::row_of(half);
      scale[half] = i < in.packed.anchors ? in.packed.scale[i] : T(0);
      sums[half] = {bounded ? T(0) : -Limits<T>::kMax, 0, 0};
    }
  }

  __device__ __forceinline__ void operator()(int64_t first_column, typename Gemm::Products& products) {
    const ContrastiveArguments<P>& packed = in.packed;
    to_scores<Gemm>({in.columns, packed.batch, packed.two_views}, first_row, scale,
                    packed.scale + in.first_column + first_column, first_column, products);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ExpSums<T>& row = sums[half];
      const auto score = [&](int c) { return products[0][c / 2][half * 2 + c % 2]; };
      if (!bounded) {
        T largest = row.largest;
#pragma unroll
        for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) largest = larger(largest, score(c));
        row = relative_to(row, largest);
      }
#pragma unroll
      for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) row.sum += exp(packed.growth * (score(c) - row.largest));
      if (packed.weighted) {
#pragma unroll
        for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
          row.weight_sum += exp(packed.hardness * (score(c) - row.largest));
        }
      }
    }
  }

  __device__ __forceinline__ void write_results(int split) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ExpSums<T> row = relative_to(sums[half], quad_max(sums[half].largest));
      row.sum = quad_sum(row.sum);
      row.weight_sum = quad_sum(row.weight_sum);
      const int64_t i = first_row + Gemm::row_of(half);
      if (quad_lane() == 0 && i < in.packed.anchors) in.partial[split * in.packed.anchors + i] = row;
    }
  }

 private:
  __device__ __forceinline__ ExpSums<T> relative_to(const ExpSums<T>& row, T largest) const {
    const T change = row.largest - largest;
    return {largest, row.sum * exp(in.packed.growth * change), row.weight_sum * exp(in.packed.hardness * change)};
  }
};

// The loss of an anchor from the sums of all splits; writes what the backward pass needs of it.
template <class P>
__device__ double finish_anchor(const ContrastiveLossArguments<P>& in, int64_t i, bool finite) {
  using T = typename P::Accumulator;
  const ContrastiveArguments<P>& packed = in.packed;
  double loss = Limits<double>::kNan;
  double value[kContrastiveValues] = {loss, loss, loss, loss};
  if (finite) {
    T largest = in.partial[i].largest;
    for (int split = 1; split < in.splits; ++split) {
      largest = larger(largest, in.partial[split * packed.anchors + i].largest);
    }
    double sum = 0, weight_sum = 0;
    for (int split = 0; split < in.splits; ++split) {
      const ExpSums<T> part = in.partial[split * packed.anchors + i];
      const double change = static_cast<double>(part.largest) - static_cast<double>(largest);
      sum += part.sum * exp(packed.growth * change);
      weight_sum += part.weight_sum * exp(packed.hardness * change);
    }
    const ContrastiveRow row = contrastive_row(packed.positive[i < packed.batch ? i : i - packed.batch],
                                               {largest, sum, weight_sum}, in.options);
    loss = row.loss;
    value[kPositiveSlope] = row.positive_slope;
    value[kSlope] = row.slope;
    value[kWeightSlope] = row.weight_slope;
    value[kShift] = largest;
  }
#pragma unroll
  for (int which = 0; which < kContrastiveValues; ++which) {
    in.row_values[which * packed.anchors + i] = static_cast<T>(value[which]);
  }
  if (in.reduction == LossReduction::kNone) store_as(in.type, in.loss, i, loss);
  return loss;
}

// Thread blocks that share a multiprocessor: as many as registers and shared memory (of sm_80 and sm_90) allow.
constexpr int forward_blocks(bool is_f64, bool is_split, bool is_large) {
  if (is_large) return is_split ? 1 : 2;
  return is_f64 ? 2 : 3;
}

template <class P, int kWarps>
constexpr int kForwardBlocks =
    forward_blocks(std::is_same<typename P::Element, double>::value, P::kParts == 2, kWarps == 8);

// Block (x, y) sums over split y of the columns for row block x. The last one of a row block adds the splits up in
// their order, the last one of all adds the losses up.
template <class P, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kForwardBlocks<P, kWarps>)
    sum_exps_kernel(const ContrastiveLossArguments<P> in) {
  using T = typename P::Accumulator;
  using Sums = SumExps<P, kWarps>;
  using Gemm = typename Sums::Gemm;
  DEEPCLUST_DYNAMIC_SHARED(shared);
  const ContrastiveArguments<P>& packed = in.packed;
  const int64_t first_row = int64_t{blockIdx.x} * Gemm::kRows;
  const T squares = largest_of<kWarps>(packed.largest_squares, packed.prepare_blocks);
  const bool finite = squares <= Limits<T>::kMax;
  if (finite) {
    Sums sums(in, first_row, packed.is_bounded(squares));
    const int tiles = static_cast<int>(divide_up(in.columns, Gemm::kColumns));
    const TileOperand<P> columns[1] = {packed.operand(in.first_column, in.columns)};
    Gemm::run(packed.operand(0, packed.anchors), columns, packed.row_depth, first_row,
              static_cast<int>(int64_t{tiles} * blockIdx.y / in.splits),
              static_cast<int>(int64_t{tiles} * (blockIdx.y + 1) / in.splits), shared, sums);
    sums.write_results(blockIdx.y);
  }
  if (!is_last_block(in.tickets + blockIdx.x, in.splits)) return;

  double loss[1] = {0};
  const int64_t i = first_row + threadIdx.x;
  if (threadIdx.x < Gemm::kRows && i < packed.anchors) loss[0] = finish_anchor(in, i, finite);
  if (in.reduction == LossReduction::kNone) return;
  sum_over_block<kWarps>(loss);
  if (threadIdx.x == 0) in.sums[blockIdx.x] = loss[0];
  if (!is_last_block(in.tickets + in.row_blocks, in.row_blocks)) return;
  double total[1] = {0};
  for (int block = threadIdx.x; block < in.row_blocks; block += 32 * kWarps) total[0] += in.sums[block];
  sum_over_block<kWarps>(total);
  if (threadIdx.x != 0) return;
  if (in.reduction == LossReduction::kMean) total[0] /= static_cast<double>(packed.anchors);
  store_as(in.type, in.loss, 0, total[0]);
}

}  // namespace deepclust::contrastive

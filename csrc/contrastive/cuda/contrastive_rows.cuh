// First kernel of the contrastive loss: packs the rows, and computes what belongs to a row or a positive pair alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "contrastive/cuda/fused_contrastive_loss.cuh"
#include "core/constants.h"
#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"

namespace deepclust::contrastive {

// A quad packs the two rows of a pair, or a row of the queue. A block is small, so that 256 pairs still make 8 blocks.
constexpr int kPrepareThreads = 128;
constexpr int kRowsPerPrepareBlock = kPrepareThreads / 4;
// At most so many thread blocks share the columns of a row. The last block, or the last kernel, adds up their parts one
// after the other; with more parts that would take noticeable time.
constexpr int kMaxSplits = 16;
// If scores times 1 + hardness are within this bound, no maximum is needed: neither their exponentials nor a gradient
// over the sum of exponentials can overflow or underflow.
constexpr double kMaxUnshiftedExponent = 30;
// Rows that are split into two float16 parts are scaled to a norm of about 2^7. Then elements stay below the largest
// float16 and low parts above the smallest, so both parts together have 22 bits.
constexpr int kSplitExponent = 7;

enum Group { kViewA, kViewB, kQueue };

template <class P>
struct ContrastiveArguments {
  using T = typename P::Accumulator;
  using Element = typename P::Element;
  Element* part[P::kParts];  // (rows, row_depth)
  T* scale;                  // (rows,)
  T* inverse_norm;           // (rows,)
  T* positive;               // (B,)
  T* largest_squares;        // (prepare_blocks,)
  int64_t batch, rows, row_depth, anchors;
  T growth, hardness;  // factors of the scores: 1 + hardness, hardness
  double max_growth;   // 1 + hardness
  int prepare_blocks;
  bool two_views, weighted;

  __device__ __forceinline__ T value(int64_t row, int64_t k) const {  // of a packed row
    T sum = widen(part[P::kParts - 1][row * row_depth + k]);
#pragma unroll
    for (int p = P::kParts - 2; p >= 0; --p) sum += widen(part[p][row * row_depth + k]);
    return sum * scale[row];
  }

  __device__ __forceinline__ TileOperand<P> operand(int64_t first, int64_t count) const {
    TileOperand<P> operand{{}, count};
#pragma unroll
    for (int p = 0; p < P::kParts; ++p) operand.part[p] = part[p] + first * row_depth;
    return operand;
  }

  // Whether scores of rows with these squared norms need no maximum.
  __device__ __forceinline__ bool is_bounded(T squares) const { return squares * max_growth <= kMaxUnshiftedExponent; }
};

// Only for the backward pass.
template <class T>
struct ContrastiveGradientArguments {
  const void* grad_loss;  // (anchors,) input type
  int64_t grad_stride;
  T factor;
  const T* row_values;  // (kContrastiveValues, anchors); null in the forward pass
  T* anchor_values;     // (kContrastiveValues, anchors): the same, slopes times the gradients of the losses
};

// Whether packed rows keep the input's elements, so that half precision loses nothing; normalization and temperature
// are then in the scale.
template <class P>
constexpr bool kKeepsElements = P::kParts == 1 && sizeof(typename P::Element) == 2;

// Packs a row, by a quad of lanes: writes its elements in the parts that the products read, and the scale that makes
// the row of these parts. Returns its squared norm, or infinity if the row is not finite.
template <class P, class Input>
__device__ typename P::Accumulator pack_row(const ContrastiveArguments<P>& in, const ContrastiveInputs& inputs,
                                            int group, int64_t index, int64_t row) {
  using T = typename P::Accumulator;
  using Element = typename P::Element;
  // Step 1: the factors. The row is z / max(|z|, 1e-12) / sqrt(temperature), followed by c / sqrt(class_temperature),
  // so the product of two rows is their score.
  const Input* z = static_cast<const Input*>(inputs.features[group]) + index * inputs.depth;
  const Input* c = static_cast<const Input*>(inputs.class_vectors[group]);
  if (c != nullptr) c += index * inputs.classes;
  const Norm<T> norm = norm_of<T>(z, inputs.depth, true), class_norm = norm_of<T>(c, inputs.classes, true);
  const double inverse_norm = inputs.normalize ? 1 / larger(norm.value, kMinNorm) : 1;
  const double factor = inverse_norm / sqrt(inputs.options.temperature);
  const double class_factor = 1 / sqrt(inputs.options.class_temperature);
  // Step 2: its squared norm. The largest of all rows bounds every score.
  const double size = norm.value * factor, class_size = class_norm.value * class_factor;
  const double squares = size * size + class_size * class_size;
  const bool finite = norm.finite && class_norm.finite && squares <= Limits<T>::kMax;
  constexpr bool kKeeps = kKeepsElements<P>, kIsSplit = P::kParts == 2;
  // Step 3: the power of two by which elements are divided. For two float16 parts it gives them all their bits. For
  // bfloat16 elements it keeps products from overflowing.
  int exponent = 0;
  if (kIsSplit && finite && squares > 0) exponent = ilogb(sqrt(squares)) - kSplitExponent;
  if (std::is_same<Element, __nv_bfloat16>::value && finite && norm.value > 0) exponent = ilogb(norm.value);
  // Step 4: the elements. The first part is the rounded element, and the second is what the rounding has cut off.
  const T own_factor = kKeeps ? T(1) : static_cast<T>(factor);
  for (int64_t chunk = quad_lane(); chunk < in.row_depth / Chunk<Element>::kCount; chunk += 4) {
    Chunk<Element> parts[P::kParts];
#pragma unroll
    for (int e = 0; e < Chunk<Element>::kCount; ++e) {
      const int64_t k = chunk * Chunk<Element>::kCount + e;
      T value = 0;
      if (k < inputs.depth) {
        value = widen(z[k]) * own_factor;
      } else if (k < inputs.depth + inputs.classes) {
        value = widen(c[k - inputs.depth]) * static_cast<T>(class_factor);
      }
      if constexpr (sizeof(Element) == 2) value = ldexpf(value, -exponent);
#pragma unroll
      for (int p = 0; p < P::kParts; ++p) {
        parts[p].element[e] = narrow<Element>(value);
        value -= widen(parts[p].element[e]);
      }
    }
#pragma unroll
    for (int p = 0; p < P::kParts; ++p) parts[p].store(in.part[p] + row * in.row_depth, chunk);
  }
  // Step 5: the scale, by which the sum of the parts is multiplied to get the row.
  if (quad_lane() == 0) {
    in.inverse_norm[row] = static_cast<T>(inverse_norm);
    in.scale[row] = static_cast<T>(ldexp(kKeeps ? factor : 1.0, exponent));
  }
  return finite ? static_cast<T>(squares) : Limits<T>::kInfinity;
}

// Score of a positive pair, by the quad that packed both rows: every lane reads the chunks that it wrote itself.
template <class P>
__device__ typename P::Accumulator positive_score(const ContrastiveArguments<P>& in, int64_t pair) {
  using T = typename P::Accumulator;
  using Element = typename P::Element;
  T sum[2] = {};
  for (int64_t chunk = quad_lane(); chunk < in.row_depth / Chunk<Element>::kCount; chunk += 4) {
    T x[Chunk<Element>::kCount] = {}, y[Chunk<Element>::kCount] = {};
#pragma unroll
    for (int p = P::kParts - 1; p >= 0; --p) {
      const auto a = Chunk<Element>::load(in.part[p] + pair * in.row_depth, chunk);
      const auto b = Chunk<Element>::load(in.part[p] + (in.batch + pair) * in.row_depth, chunk);
#pragma unroll
      for (int e = 0; e < Chunk<Element>::kCount; ++e) {
        x[e] += widen(a.element[e]);
        y[e] += widen(b.element[e]);
      }
    }
#pragma unroll
    for (int e = 0; e < Chunk<Element>::kCount; ++e) sum[e % 2] += x[e] * y[e];
  }
  const T total = quad_sum(sum[0] + sum[1]);
  __syncwarp(quad_mask());  // the scales were written by the first lane
  return total * in.scale[pair] * in.scale[in.batch + pair];
}

template <class P, class Input>
__device__ void write_anchor_values(const ContrastiveArguments<P>& in,
                                    const ContrastiveGradientArguments<typename P::Accumulator>& gradient,
                                    int64_t anchor) {
  using T = typename P::Accumulator;
  const T grad = widen(static_cast<const Input*>(gradient.grad_loss)[anchor * gradient.grad_stride]) * gradient.factor;
#pragma unroll
  for (int which = 0; which < kContrastiveValues; ++which) {
    const T value = gradient.row_values[which * in.anchors + anchor];
    gradient.anchor_values[which * in.anchors + anchor] = which == kShift ? value : grad * value;
  }
}

// A quad packs both rows of a pair, or a row of the queue. Zeroes the tickets, if there are any.
template <class P, class Input>
__global__ void __launch_bounds__(kPrepareThreads, 4)
    prepare_kernel(const ContrastiveArguments<P> in, const ContrastiveInputs inputs,
                   const ContrastiveGradientArguments<typename P::Accumulator> gradient, unsigned* tickets,
                   int ticket_count) {
  using T = typename P::Accumulator;
  const int64_t i = int64_t{blockIdx.x} * kRowsPerPrepareBlock + threadIdx.x / 4;
  T squares = 0;
  if (i < in.batch) {
    squares = pack_row<P, Input>(in, inputs, kViewA, i, i);
    squares = larger(squares, pack_row<P, Input>(in, inputs, kViewB, i, in.batch + i));
    const T positive = positive_score(in, i);
    if (quad_lane() == 0) {
      in.positive[i] = positive;
      if (gradient.row_values != nullptr) {
        write_anchor_values<P, Input>(in, gradient, i);
        if (in.two_views) write_anchor_values<P, Input>(in, gradient, in.batch + i);
      }
    }
  } else if (i - in.batch < inputs.queue) {
    squares = pack_row<P, Input>(in, inputs, kQueue, i - in.batch, in.batch + i);
  }
  DEEPCLUST_SHARED(T, largest, [kPrepareThreads / 32]);
  squares = warp_max(squares);
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = squares;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kPrepareThreads / 32; ++warp) squares = larger(squares, largest[warp]);
    in.largest_squares[blockIdx.x] = squares;
  }
  if (blockIdx.x == 0) {
    for (int ticket = threadIdx.x; ticket < ticket_count; ticket += kPrepareThreads) tickets[ticket] = 0;
  }
}

// Which columns are negatives of a row: all that exist but, with two views, the row itself and its other view.
struct Negatives {
  int64_t columns;
  int64_t batch;
  bool two_views;

  // Whether all pairs among kColumns columns from `column` and kRows rows from `row` are negatives.
  template <int kRows, int kColumns>
  __device__ __forceinline__ bool are_all(int64_t row, int64_t column) const {
    if (column + kColumns > columns) return false;
    const auto apart = [&](int64_t first) { return first >= column + kColumns || first + kRows <= column; };
    return !two_views || (apart(row) && apart(row - batch) && apart(row + batch));
  }

  __device__ __forceinline__ bool contains(int64_t row, int64_t column) const {
    if (column >= columns) return false;
    return !two_views || (column != row && column != row - batch && column != row + batch);
  }
};

// Turns products into scores, minus infinity where the pair is no negative.
template <class Gemm, class T>
__device__ __forceinline__ void to_scores(const Negatives& negatives, int64_t first_row, const T (&row_scale)[2],
                                          const T* column_scale /* of the tile's columns that exist */,
                                          int64_t first_column, typename Gemm::Products& products) {
  const int left = static_cast<int>(smaller<int64_t>(Gemm::kColumns, negatives.columns - first_column));
#pragma unroll
  for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
    const int j = Gemm::column_of(c / 2, c % 2);
    const T scale = j < left ? column_scale[j] : T(0);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T& product = products[0][c / 2][half * 2 + c % 2];
      product = product * scale * row_scale[half];
    }
  }
  if (negatives.are_all<Gemm::kRows, Gemm::kColumns>(first_row, first_column)) return;
#pragma unroll
  for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!negatives.contains(first_row + Gemm::row_of(half), first_column + Gemm::column_of(c / 2, c % 2))) {
        products[0][c / 2][half * 2 + c % 2] = -Limits<T>::kInfinity;
      }
    }
  }
}

}  // namespace deepclust::contrastive

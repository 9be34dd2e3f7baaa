// Backward pass of the contrastive loss. With W_ij the derivative of the loss by the score s_ij of rows i and j, the
// gradient of a packed row is sum_j W_ij x_j. A thread block owns some rows and some features of their sums: it
// computes the scores again, turns them into weights in registers, and multiplies these with the columns, so that every
// sum is taken in one order, without atomics.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "contrastive/cuda/contrastive_rows.cuh"
#include "core/cuda/block.cuh"
#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"
#include "core/host_device.h"

namespace deepclust::contrastive {

constexpr int kOwnerWarps = 4;
constexpr int kBackwardBlocksPerMultiprocessor = 2;

template <class P>
constexpr int kChunkFeatures = std::is_same<typename P::Element, double>::value ? 64 : 128;

// Sums of some packed rows over their columns.
template <class P>
struct ContrastiveOwnerArguments {
  using T = typename P::Accumulator;
  ContrastiveArguments<P> packed;
  const T* anchor_values;  // (kContrastiveValues, anchors), see ContrastiveGradientArguments
  T* sums;                 // (splits, count, row_depth)
  int64_t first_row, count, first_column, columns;
  int splits, first_chunk;
  bool rows_are_anchors, columns_are_anchors;
};

// What a row or a column contributes to the weights of its pairs; nothing if it is no anchor.
template <class T>
struct Contribution {
  T slope, weight_slope, shift;

  template <class P>
  static __device__ __forceinline__ Contribution of(const ContrastiveOwnerArguments<P>& in, bool is_anchor,
                                                    int64_t anchor) {
    if (!is_anchor) return {0, 0, Limits<T>::kInfinity};
    const auto value = [&](ContrastiveValue which) { return in.anchor_values[which * in.packed.anchors + anchor]; };
    return {value(kSlope), value(kWeightSlope), value(kShift)};
  }
};

// Row functor: sums over the columns, weighted.
template <class P>
struct SumOverColumns {
  using Gemm = TileGemm<P, kOwnerWarps, 1>;
  using T = typename P::Accumulator;
  using Element = typename P::Element;
  static constexpr bool kWide = std::is_same<T, double>::value;
  static constexpr int kFeatures = kChunkFeatures<P>;
  // Sixteen bytes more than the features take: the rows that a warp reads together lie in different banks.
  static constexpr int kRowBytes = kFeatures * int(sizeof(Element)) + 16;
  static constexpr int kTileBytes = P::kParts * Gemm::kColumns * kRowBytes;
  // Of every column of the tile: its contribution and its scale.
  enum ColumnValue { kColumnSlope, kColumnWeightSlope, kColumnShift, kColumnScale, kColumnValues };
  static constexpr int kColumnTotal = kColumnValues * Gemm::kColumns;
  static constexpr size_t kColumnOffset = device::shared_next<unsigned char>(Gemm::kSharedBytes, kTileBytes);
  static constexpr size_t kSharedBytes = device::shared_next<T>(kColumnOffset, kColumnTotal);

  const ContrastiveOwnerArguments<P>& in;
  int64_t block_row;      // of the owned rows
  int64_t first_feature;  // of the packed row
  bool bounded;
  unsigned char* tile;  // (parts, columns) rows
  T* column_values;     // (kColumnValues, columns)
  T scale[2];
  Contribution<T> row[2];
  T sum[kFeatures / 8][4];  // element (f, e) belongs to row e / 2 of the lane and feature feature_of(f, e % 2)

  __device__ __forceinline__ SumOverColumns(const ContrastiveOwnerArguments<P>& arguments, int64_t first, int chunk,
                                            bool is_bounded, unsigned char* shared)
      : in(arguments), block_row(first), first_feature(int64_t{chunk} * kFeatures), bounded(is_bounded) {
    tile = device::shared_array<unsigned char>(shared, Gemm::kSharedBytes, kTileBytes);
    column_values = device::shared_array<T>(shared, kColumnOffset, kColumnTotal);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t i = block_row + Gemm::row_of(half);
      const bool present = i < in.count;
      scale[half] = present ? in.packed.scale[in.first_row + i] : T(0);
      row[half] = Contribution<T>::of(in, present && in.rows_are_anchors, in.first_row + i);
    }
#pragma unroll
    for (int f = 0; f < kFeatures / 8; ++f) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[f][e] = 0;
    }
  }

  // Features lie such that a lane has four neighboring ones, and such that it reads two neighboring ones of a column.
  static __device__ __forceinline__ int feature_of(int f, int v) {
    return f / 2 * 16 + quad_lane() * 4 + (kWide ? f % 2 * 2 + v : v * 2 + f % 2);
  }

  // All threads have passed a barrier since they read shared memory for the last tile.
  __device__ __forceinline__ void operator()(int64_t first_column, typename Gemm::Products& products) {
    copy_columns(first_column);
    device::cp_async_commit();
    write_column_values(first_column);
    __syncthreads();
    to_scores<Gemm>({in.columns, in.packed.batch, in.packed.two_views}, in.first_row + block_row, scale,
                    column_values + kColumnScale * Gemm::kColumns, first_column, products);
    if (bounded) {
      to_weights<true>(products);
    } else {
      to_weights<false>(products);
    }
    device::cp_async_wait<0>();
    __syncthreads();
    add_columns(products);
  }

  __device__ __forceinline__ void write_results(int split) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t i = block_row + Gemm::row_of(half);
      T* target = in.sums + (split * in.count + i) * in.packed.row_depth;
#pragma unroll
      for (int f = 0; f < kFeatures / 8; ++f) {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const int64_t k = first_feature + feature_of(f, v);
          if (i < in.count && k < in.packed.row_depth) target[k] = sum[f][half * 2 + v];
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void copy_columns(int64_t first_column) const {
    constexpr int kChunkElements = Chunk<Element>::kCount, kChunks = kFeatures / kChunkElements;
#pragma unroll
    for (int part = 0; part < P::kParts; ++part) {
#pragma unroll 4
      for (int c = threadIdx.x; c < Gemm::kColumns * kChunks; c += Gemm::kThreads) {
        const int line = c / kChunks, chunk = c % kChunks;
        const int64_t k = first_feature + chunk * kChunkElements, j = first_column + line;
        const bool present = j < in.columns && k < in.packed.row_depth;
        const int64_t from = present ? (in.first_column + j) * in.packed.row_depth + k : 0;
        device::cp_async16(tile + (part * Gemm::kColumns + line) * kRowBytes + chunk * 16, in.packed.part[part] + from,
                           present ? 16 : 0);
      }
    }
  }

  __device__ __forceinline__ void write_column_values(int64_t first_column) const {
    const int c = threadIdx.x;
    if (c >= Gemm::kColumns) return;
    const bool present = first_column + c < in.columns;
    const int64_t j = in.first_column + first_column + c;
    const auto column = Contribution<T>::of(in, present && in.columns_are_anchors, j);
    const T value[kColumnValues] = {column.slope, column.weight_slope, column.shift,
                                    present ? in.packed.scale[j] : T(0)};
#pragma unroll
    for (int which = 0; which < kColumnValues; ++which) column_values[which * Gemm::kColumns + c] = value[which];
  }

  // Turns scores into weights, times the scale of the column.
  template <bool kBounded>
  __device__ __forceinline__ void to_weights(typename Gemm::Products& scores) const {
    const ContrastiveArguments<P>& packed = in.packed;
#pragma unroll
    for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
      const auto column = [&](ColumnValue which) {
        return column_values[which * Gemm::kColumns + Gemm::column_of(c / 2, c % 2)];
      };
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T& score = scores[0][c / 2][half * 2 + c % 2];
        T weight = growing_weight<kBounded>(packed.growth, score, row[half].slope, row[half].shift,
                                            column(kColumnSlope), column(kColumnShift));
        if (packed.weighted) {
          weight -= growing_weight<kBounded>(packed.hardness, score, row[half].weight_slope, row[half].shift,
                                             column(kColumnWeightSlope), column(kColumnShift));
        }
        score = weight * column(kColumnScale);
      }
    }
  }

  // Bounded scores have no shift: one exponential serves both anchors.
  template <bool kBounded>
  static __device__ __forceinline__ T growing_weight(T growth, T score, T row_slope, T row_shift, T column_slope,
                                                     T column_shift) {
    if constexpr (kBounded) {
      return (row_slope + column_slope) * exp(growth * score);
    } else {
      return row_slope * exp(growth * (score - row_shift)) + column_slope * exp(growth * (score - column_shift));
    }
  }

  __device__ __forceinline__ void add_columns(const typename Gemm::Products& weights) {
    if constexpr (kWide) {
      add_columns_f64(weights);
    } else {
      add_columns_tf32(weights);
    }
  }

  // Two neighboring elements of a column as pieces for the tensor cores.
  struct Pieces {
    uint32_t piece[P::kPieces][2];
  };

  __device__ __forceinline__ Pieces load_pieces(int line, int feature) const {
    Pieces loaded;
#pragma unroll
    for (int part = 0; part < P::kParts; ++part) {
      const unsigned char* from = tile + (part * Gemm::kColumns + line) * kRowBytes + feature * int(sizeof(Element));
      struct {
        Element element[2];
      } pair;
      if constexpr (sizeof(Element) == 2) {  // exact in tf32
        const uint32_t bytes = *reinterpret_cast<const uint32_t*>(from);
        memcpy(&pair, &bytes, sizeof(pair));
      } else {
        const float2 bytes = *reinterpret_cast<const float2*>(from);
        memcpy(&pair, &bytes, sizeof(pair));
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float value = widen(pair.element[e]);
        loaded.piece[part][e] = sizeof(Element) == 2 ? __float_as_uint(value) : device::float_to_tf32(value);
      }
    }
    return loaded;
  }

  // The accumulators of the scores are the operand of this product as they lie: their columns 2 t and 2 t + 1 are the
  // depths t and t + 4 of it. In tf32 because weights have the range of float32. Split values are summed tile by tile,
  // as in TileGemm.
  __device__ __forceinline__ void add_columns_tf32(const typename Gemm::Products& weights) {
    constexpr int kPieces = P::kPieces;
    uint32_t a[Gemm::kColumnTiles][kPieces][4];
#pragma unroll
    for (int n = 0; n < Gemm::kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float value = weights[0][n][e];
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
          const uint32_t bits = device::float_to_tf32(value);
          a[n][piece][e % 2 * 2 + e / 2] = bits;
          value -= __uint_as_float(bits);
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < kFeatures / 16; ++pair) {
      float d[2][4] = {};
#pragma unroll
      for (int n = 0; n < Gemm::kColumnTiles; ++n) {
        Pieces b[2];
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          b[v] = load_pieces(Gemm::column_of(n, v), pair * 16 + threadIdx.x % 32 / 4 * 2);
        }
#pragma unroll
        for (int f = 0; f < 2; ++f) {
          if constexpr (kPieces == 2) {  // small terms first
            device::mma_m16n8k8_tf32(d[f], a[n][1], b[0].piece[0][f], b[1].piece[0][f]);
            device::mma_m16n8k8_tf32(d[f], a[n][0], b[0].piece[1][f], b[1].piece[1][f]);
            device::mma_m16n8k8_tf32(d[f], a[n][0], b[0].piece[0][f], b[1].piece[0][f]);
          } else {
            device::mma_m16n8k8_tf32(sum[pair * 2 + f], a[n][0], b[0].piece[0][f], b[1].piece[0][f]);
          }
        }
      }
      if constexpr (kPieces == 2) {
#pragma unroll
        for (int f = 0; f < 2; ++f) {
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[pair * 2 + f][e] += d[f][e];
        }
      }
    }
  }

  __device__ __forceinline__ void add_columns_f64(const typename Gemm::Products& weights) {
#pragma unroll
    for (int n = 0; n < Gemm::kColumnTiles; ++n) {
#pragma unroll 1
      for (int t = 0; t < 4; ++t) {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          T weight[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            weight[half] = __shfl_sync(kWholeWarp, weights[0][n][half * 2 + v], t, 4);
          }
          const unsigned char* line = tile + (n * 8 + t * 2 + v) * kRowBytes;
#pragma unroll
          for (int f = 0; f < kFeatures / 8; ++f) {
            const double2 x = *reinterpret_cast<const double2*>(line + feature_of(f, 0) * int(sizeof(T)));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              sum[f][half * 2] = fma(weight[half], x.x, sum[f][half * 2]);
              sum[f][half * 2 + 1] = fma(weight[half], x.y, sum[f][half * 2 + 1]);
            }
          }
        }
      }
    }
  }
};

// Block (x, y, z) sums over split y of the columns for row block x and chunk z of the features.
template <class P>
__global__ void __launch_bounds__(32 * kOwnerWarps, kBackwardBlocksPerMultiprocessor)
    sum_over_columns_kernel(const ContrastiveOwnerArguments<P> in) {
  using T = typename P::Accumulator;
  using Sums = SumOverColumns<P>;
  using Gemm = typename Sums::Gemm;
  DEEPCLUST_DYNAMIC_SHARED(shared);
  const ContrastiveArguments<P>& packed = in.packed;
  const T squares = largest_of<kOwnerWarps>(packed.largest_squares, packed.prepare_blocks);
  if (!(squares <= Limits<T>::kMax)) return;
  const int64_t block_row = int64_t{blockIdx.x} * Gemm::kRows;
  Sums sums(in, block_row, in.first_chunk + static_cast<int>(blockIdx.z), packed.is_bounded(squares), shared);
  const int tiles = static_cast<int>(divide_up(in.columns, Gemm::kColumns));
  const TileOperand<P> columns[1] = {packed.operand(in.first_column, in.columns)};
  Gemm::run(packed.operand(in.first_row, in.count), columns, packed.row_depth, block_row,
            static_cast<int>(int64_t{tiles} * blockIdx.y / in.splits),
            static_cast<int>(int64_t{tiles} * (blockIdx.y + 1) / in.splits), shared, sums);
  sums.write_results(blockIdx.y);
}

}  // namespace deepclust::contrastive

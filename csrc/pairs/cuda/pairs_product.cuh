// The products of pair_information, in tiles: logits from rows, and both gradients from the gradient by the logits.
//
// Plain multiply-adds of the accumulation type, not tensor cores: a temperature below 1 enlarges the errors of logits,
// and heads come in float32 under autocast. Matrices are read in place, whichever way they lie and whatever their
// sizes. Where the tiles are too few for the device, several thread blocks share the depth of one, and another kernel
// adds up their parts in order. Sums in float32 go stage by stage, so that their error hardly grows with the depth.
#pragma once

#include <cstdint>

#include "core/cuda/device.h"
#include "core/cuda/numeric.cuh"
#include "core/host_device.h"

namespace deepclust::pairs {

constexpr int kProductThreads = 128;
constexpr int kTile = 64;  // lines and columns of the result
constexpr int kStageDepth = 16;
constexpr int kThreadsAcross = 16, kThreadsDown = kProductThreads / kThreadsAcross;
constexpr int kThreadLines = kTile / kThreadsDown, kThreadColumns = kTile / kThreadsAcross;
// Two more than the tile has: what a warp writes together lies in different banks.
constexpr int kTileStride = kTile + 2;
constexpr int kFetched = kTile * kStageDepth / kProductThreads;  // elements of a stage that a thread fetches

constexpr int kBlocksPerMultiprocessor = 2;
constexpr int64_t kMinPartDepth = 256;  // less is added up sooner than another thread block begins

// Which rows of a matrix are meant: all of them, or those of some neighboring pairs, all first ones before the others.
struct Lines {
  int64_t count, first;
  int64_t half, gap;  // from number `half` on, `gap` rows are left out

  static Lines all(int64_t count) { return {count, 0, count, 0}; }
  static Lines of_pairs(int64_t first, int64_t count, int64_t pairs) {
    return {2 * count, first, count, pairs - count};
  }

  __device__ __forceinline__ int64_t place(int64_t i) const { return first + i + (i < half ? 0 : gap); }
};

template <class Element>
struct Matrix {
  const Element* values[2];  // of the two products of a launch
  Lines lines;
  int64_t width;

  static Matrix of(const void* values, const Lines& lines, int64_t width, const void* other = nullptr) {
    return {{static_cast<const Element*>(values), static_cast<const Element*>(other)}, lines, width};
  }

  __device__ __forceinline__ Widened<Element> value(int64_t line, int64_t column) const {
    return widen(values[blockIdx.z][lines.place(line) * width + column]);
  }
};

template <class T>
struct Result {
  T* values[2];
  Lines lines;
  int64_t width;
  double factor;
  bool add;  // to what is there

  __device__ __forceinline__ void write(int product, int64_t line, int64_t column, T sum) const {
    T* target = values[product] + lines.place(line) * width + column;
    const T scaled = static_cast<T>(sum * factor);
    *target = add ? *target + scaled : scaled;
  }
};

// result(m, n) = factor sum_k scale left(m, k) right(n, k), with the matrices transposed where they do not lie along k.
template <class Left, class Right>
struct Product {
  using T = Widened<Left>;
  Matrix<Left> left;
  Matrix<Right> right;
  Result<T> result;
  T scale;  // a power of two
  int64_t depth;
  T* parts;  // (parts, lines, width) or null: not cut
  int64_t part_depth;
};

// Reads the part of a stage that this thread fetches; what is beyond the lines or the depth is zero.
template <bool kAlongDepth, class Element>
__device__ __forceinline__ void fetch(const Matrix<Element>& in, int64_t first, int64_t count, int64_t begin,
                                      int64_t end, Widened<Element> (&fetched)[kFetched]) {
#pragma unroll
  for (int f = 0; f < kFetched; ++f) {
    const int e = f * kProductThreads + threadIdx.x;
    const int64_t i = first + (kAlongDepth ? e / kStageDepth : e % kTile);
    const int64_t k = begin + (kAlongDepth ? e % kStageDepth : e / kTile);
    fetched[f] = i < count && k < end ? (kAlongDepth ? in.value(i, k) : in.value(k, i)) : Widened<Element>(0);
  }
}

template <bool kAlongDepth, class T>
__device__ __forceinline__ void store(const T (&fetched)[kFetched], T scale,
                                      T* stage /* (kStageDepth, kTileStride) */) {
#pragma unroll
  for (int f = 0; f < kFetched; ++f) {
    const int e = f * kProductThreads + threadIdx.x;
    const int i = kAlongDepth ? e / kStageDepth : e % kTile, k = kAlongDepth ? e % kStageDepth : e / kTile;
    stage[k * kTileStride + i] = scale * fetched[f];
  }
}

// Block (tile, part of the depth, product). Along the depth lie both matrices, the left one, or none.
template <bool kLeftAlong, bool kRightAlong, class Left, class Right>
__global__ void __launch_bounds__(kProductThreads) product_kernel(const Product<Left, Right> in) {
  using T = Widened<Left>;
  constexpr int kStageElements = kStageDepth * kTileStride;
  constexpr bool kStageSums = sizeof(T) == sizeof(float);  // float64 has bits to spare, but no registers
  DEEPCLUST_SHARED(T, shared, [2 * kStageElements]);
  T *left = shared, *right = shared + kStageElements;
  const int64_t lines = in.result.lines.count, columns = in.result.width;
  const int64_t across = divide_up(columns, kTile);
  const int64_t first_line = blockIdx.x / across * kTile, first_column = blockIdx.x % across * kTile;
  const int64_t begin = blockIdx.y * in.part_depth, end = smaller(begin + in.part_depth, in.depth);
  const int down = threadIdx.x / kThreadsAcross, along = threadIdx.x % kThreadsAcross;
  T total[kThreadLines][kThreadColumns] = {};
  T next_left[kFetched], next_right[kFetched];
  const auto fetch_stage = [&](int64_t k) {
    fetch<kLeftAlong>(in.left, first_line, lines, k, end, next_left);
    fetch<kRightAlong>(in.right, first_column, columns, k, end, next_right);
  };
  fetch_stage(begin);
  for (int64_t k = begin; k < end; k += kStageDepth) {
    store<kLeftAlong>(next_left, in.scale, left);
    store<kRightAlong>(next_right, T(1), right);
    __syncthreads();
    fetch_stage(k + kStageDepth);  // is on its way while this stage is multiplied
    T sum[kThreadLines][kThreadColumns] = {};
#pragma unroll
    for (int d = 0; d < kStageDepth; ++d) {
      T y[kThreadColumns];
#pragma unroll
      for (int c = 0; c < kThreadColumns; ++c) y[c] = right[d * kTileStride + along + c * kThreadsAcross];
#pragma unroll
      for (int r = 0; r < kThreadLines; ++r) {
        const T x = left[d * kTileStride + down + r * kThreadsDown];
#pragma unroll
        for (int c = 0; c < kThreadColumns; ++c) (kStageSums ? sum : total)[r][c] += x * y[c];
      }
    }
#pragma unroll
    for (int r = 0; r < kThreadLines; ++r) {
#pragma unroll
      for (int c = 0; c < kThreadColumns && kStageSums; ++c) total[r][c] += sum[r][c];
    }
    device::sync_forget(shared, 2 * kStageElements);
  }
#pragma unroll
  for (int r = 0; r < kThreadLines; ++r) {
#pragma unroll
    for (int c = 0; c < kThreadColumns; ++c) {
      const int64_t m = first_line + down + r * kThreadsDown, n = first_column + along + c * kThreadsAcross;
      if (m >= lines || n >= columns) continue;
      if (in.parts == nullptr) {
        in.result.write(blockIdx.z, m, n, total[r][c]);
      } else {
        in.parts[(blockIdx.y * lines + m) * columns + n] = total[r][c];
      }
    }
  }
}

// Adds up the parts of one element to a thread.
template <class T>
__global__ void __launch_bounds__(kProductThreads)
    add_parts_kernel(const T* parts /* (count, lines, width) */, int64_t count, const Result<T> result) {
  const int64_t size = result.lines.count * result.width;
  const int64_t element = int64_t{blockIdx.x} * kProductThreads + threadIdx.x;
  if (element >= size) return;
  T sum = 0;
#pragma unroll 8
  for (int64_t part = 0; part < count; ++part) sum += parts[part * size + element];
  result.write(0, element / result.width, element % result.width, sum);
}

template <class T>
cudaError_t launch_add_parts(const T* parts, int64_t count, const Result<T>& result, cudaStream_t stream) {
  const int64_t blocks = divide_up(result.lines.count * result.width, kProductThreads);
  return device::launch(add_parts_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kProductThreads), 0, stream,
                        parts, count, result);
}

// Elements of all parts of any product: as many tiles as blocks that the device is to have.
inline int64_t part_elements(int multiprocessors) {
  return int64_t{kTile} * kTile * kBlocksPerMultiprocessor * multiprocessors;
}

// `products` 1 or 2, which differ in their pointers. Of one, the depth may be cut if there are `parts`, of
// part_elements.
template <bool kLeftAlong, bool kRightAlong, class Left, class Right>
cudaError_t launch_product(Product<Left, Right> product, int products, int multiprocessors, Widened<Left>* parts,
                           cudaStream_t stream) {
  const Result<Widened<Left>>& result = product.result;
  const int64_t tiles = divide_up(result.lines.count, kTile) * divide_up(result.width, kTile);
  int64_t count = 1;
  if (parts != nullptr) {
    count = smaller(kBlocksPerMultiprocessor * multiprocessors / tiles, divide_up(product.depth, kMinPartDepth));
    count = larger<int64_t>(count, 1);
  }
  product.part_depth = round_up(divide_up(product.depth, count), kStageDepth);
  count = divide_up(product.depth, product.part_depth);
  product.parts = count > 1 ? parts : nullptr;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(count), static_cast<unsigned>(products));
  const cudaError_t error = device::launch(product_kernel<kLeftAlong, kRightAlong, Left, Right>, grid,
                                           dim3(kProductThreads), 0, stream, product);
  if (error != cudaSuccess || count == 1) return error;
  return launch_add_parts<Widened<Left>>(parts, count, result, stream);
}

}  // namespace deepclust::pairs

// The tile product that the CUDA ops share: a block of rows against a stream of columns, with a row functor on top.
//
// A thread block owns kRows rows and walks over column tiles; a column is a row of one of kSets other matrices. After a
// tile's products are complete the functor gets them in registers, so no matrix of scores is ever in memory. Each warp
// holds its own 16 rows against all columns of the tile, and every row lies with all columns in one quad (four
// neighboring lanes): a functor can keep per-row state in registers and reduce with two shuffles.
//
// Depth goes through shared memory in stages of 128 bytes per row, filled by cp.async while earlier ones are
// multiplied. 16-byte chunks are stored at chunk ^ (line % 8), which keeps both the copies and ldmatrix free of bank
// conflicts. Sums are in float32 (float64 for float64), in an order that depends on nothing but the depth.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/cuda/device.h"

namespace deepclust {

// How two values are multiplied. Element is what lies in memory, in kParts matrices whose sum is the value; a part
// becomes pieces for the tensor cores; of the products of pieces the smallest, low times low, is left out. kSplitError
// bounds the error that pieces bring to a product, relative to the product of the two rows' norms.
struct F32AsTf32 {
  using Element = float;
  using Accumulator = float;
  static constexpr int kParts = 1, kPieces = 1;
  static constexpr float kSplitError = 0x1p-9f;
  static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    device::mma_m16n8k8_tf32(d, a, b0, b1);
  }
};

struct F32AsTf32x3 : F32AsTf32 {  // nearly as exact as float32 products
  static constexpr int kPieces = 2;
  static constexpr float kSplitError = 0x1p-18f;
};

struct Bf16 {
  using Element = __nv_bfloat16;
  using Accumulator = float;
  static constexpr int kParts = 1, kPieces = 1;
  static constexpr float kSplitError = 0;
  static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    device::mma_m16n8k16_bf16(d, a, b0, b1);
  }
};

struct F32AsBf16x3 : Bf16 {  // values split in two bfloat16 matrices beforehand
  static constexpr int kParts = 2, kPieces = 2;
  static constexpr float kSplitError = 0x1p-16f;
};

struct F16 {
  using Element = __half;
  using Accumulator = float;
  static constexpr int kParts = 1, kPieces = 1;
  static constexpr float kSplitError = 0;
  static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    device::mma_m16n8k16_f16(d, a, b0, b1);
  }
};

// Values split in two float16 matrices beforehand, of rows with a norm below 2: below 2^-14 the low part has fewer
// bits, which costs less than the bound allows. Nearly as exact as float32, and twice as fast as with tf32. Rows with a
// norm near 2^7 keep 22 bits of all elements that matter, which is as exact as float32.
struct F32AsF16x3 : F16 {
  static constexpr int kParts = 2, kPieces = 2;
  static constexpr float kSplitError = 0x1p-18f;
};

struct F64 {  // plain multiply-adds
  using Element = double;
  using Accumulator = double;
  static constexpr int kParts = 1, kPieces = 1;
  static constexpr double kSplitError = 0;
};

// What the inputs consist of.
template <class P>
struct RowElementOf {
  using type = typename P::Element;
};
template <>
struct RowElementOf<F32AsF16x3> {
  using type = float;
};

// A matrix of rows padded with zeros to `depth` elements, a multiple of TileGemm::kStageDepth; 16-byte aligned.
template <class P>
struct TileOperand {
  const typename P::Element* part[P::kParts];
  int64_t count;  // rows; those beyond count as zero
};

// kWarps 4 or 8: more warps share the loaded columns among more rows. kSets * kWidth 1 or 2: as many registers are
// there.
template <class P, int kWarps_, int kSets_, int kWidth = 1>
struct TileGemm {
  using Element = typename P::Element;
  using Accumulator = typename P::Accumulator;

  static constexpr int kWarps = kWarps_, kThreads = 32 * kWarps, kRows = 16 * kWarps;
  static constexpr int kSets = kSets_;
  // 64 columns of float64 would take more registers than there are.
  static constexpr int kColumns = kWidth * (std::is_same<Accumulator, double>::value ? 32 : 64);
  static constexpr int kColumnTiles = kColumns / 8;
  static constexpr int kStages = 3;
  static constexpr int kRowBytes = 128 / P::kParts;  // of one part in one stage
  static constexpr int kStageDepth = kRowBytes / int(sizeof(Element));
  static constexpr int kSlotBytes = 128 * (kRows + kSets * kColumns);
  static constexpr size_t kSlotStride = device::shared_next<unsigned char>(0, kSlotBytes);
  static constexpr size_t kSharedBytes = kStages * kSlotStride;

  // products[set][column tile][half * 2 + v] belongs to row_of(half) and column_of(column tile, v); half and v are
  // 0, 1.
  using Products = Accumulator[kSets][kColumnTiles][4];

  static __device__ __forceinline__ int row_of(int half) {  // within the block
    return threadIdx.x / 32 * 16 + half * 8 + threadIdx.x % 32 / 4;
  }
  static __device__ __forceinline__ int column_of(int column_tile, int v) {  // within the tile
    return column_tile * 8 + threadIdx.x % 4 * 2 + v;
  }

  // Calls functor(first_column, products) for column tiles first_tile ... last_tile - 1, in order, in every thread. The
  // functor may change the products. `shared` has kSharedBytes; all threads of the block take part.
  template <class Functor>
  static __device__ __forceinline__ void run(const TileOperand<P>& rows, const TileOperand<P> (&columns)[kSets],
                                             int64_t depth, int64_t first_row, int first_tile, int last_tile,
                                             unsigned char* shared, Functor& functor) {
    for (int s = 0; s < kStages; ++s) device::shared_array<unsigned char>(shared, s * kSlotStride, kSlotBytes);
    const auto slot = [&](int s) { return shared + s * kSlotStride; };
    const int steps = static_cast<int>(depth / kStageDepth);
    const int total = (last_tile - first_tile) * steps;
    int next_tile = first_tile, next_step = 0;  // what is copied next
    const auto copy_next = [&](int s) {
      if (next_tile < last_tile) {
        const int64_t offset = int64_t{next_step} * kStageDepth;
        copy_rows<kRows>(rows, first_row, depth, offset, slot(s));
        for (int set = 0; set < kSets; ++set) {
          copy_rows<kColumns>(columns[set], int64_t{next_tile} * kColumns, depth, offset,
                              slot(s) + 128 * (kRows + set * kColumns));
        }
        if (++next_step == steps) {
          next_step = 0;
          ++next_tile;
        }
      }
      device::cp_async_commit();  // empty groups keep the count of groups in flight the same
    };
    for (int s = 0; s < kStages - 1; ++s) copy_next(s);
    Products products;
    int now = 0, before = kStages - 1, step = 0, tile = first_tile;
    for (int i = 0; i < total; ++i) {
      device::cp_async_wait<kStages - 2>();
      device::sync_forget(slot(before), kSlotBytes);  // and nobody reads `before` any more
      copy_next(before);
      if (step == 0) clear(products);
      multiply(slot(now), products);
      if (++step == steps) {
        step = 0;
        functor(int64_t{tile++} * kColumns, products);
      }
      before = now;
      now = now + 1 == kStages ? 0 : now + 1;
    }
    device::cp_async_wait<0>();
    __syncthreads();  // the caller may use shared memory again
  }

 private:
  // Byte offset of a row's 16-byte chunk in a block of rows.
  static __device__ __forceinline__ int chunk_offset(int row, int chunk) {
    const int linear = row * (kRowBytes / 16) + chunk;
    return (linear ^ (linear >> 3 & 7)) * 16;
  }

  template <int kCount>
  static __device__ __forceinline__ void copy_rows(const TileOperand<P>& source, int64_t first, int64_t depth,
                                                   int64_t offset, unsigned char* target /* (parts, kCount) rows */) {
    constexpr int kChunks = kRowBytes / 16;
    static_assert(kCount * kChunks % kThreads == 0, "every thread copies the same number of chunks");
#pragma unroll
    for (int part = 0; part < P::kParts; ++part) {
#pragma unroll
      for (int c = threadIdx.x; c < kCount * kChunks; c += kThreads) {
        const int row = c / kChunks, chunk = c % kChunks;
        const bool present = first + row < source.count;
        const int64_t from = present ? (first + row) * depth + offset + chunk * (16 / int(sizeof(Element))) : 0;
        device::cp_async16(target + part * kCount * kRowBytes + chunk_offset(row, chunk), source.part[part] + from,
                           present ? 16 : 0);
      }
    }
  }

  static __device__ __forceinline__ void clear(Products& products) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) products[set][n][e] = 0;
      }
    }
  }

  // Four registers of ldmatrix for every piece: rows x 32 bytes of depth.
  struct Fragment {
    uint32_t piece[P::kPieces][4];
  };

  static __device__ __forceinline__ Fragment load_fragment(const unsigned char* block, int count, int row, int chunk) {
    Fragment fragment;
#pragma unroll
    for (int part = 0; part < P::kParts; ++part) {
      device::ldmatrix_x4(fragment.piece[part], block + part * count * kRowBytes + chunk_offset(row, chunk));
    }
    if constexpr (std::is_same<Element, float>::value) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float value = __uint_as_float(fragment.piece[0][e]);
        if constexpr (P::kPieces == 2) {  // cut off, not rounded: a third of the instructions
          constexpr uint32_t kTf32Bits = 0xffffe000u;
          const uint32_t high = fragment.piece[0][e] & kTf32Bits;
          fragment.piece[0][e] = high;
          fragment.piece[1][e] = __float_as_uint(value - __uint_as_float(high)) & kTf32Bits;
        } else {
          fragment.piece[0][e] = device::float_to_tf32(value);
        }
      }
    }
    return fragment;
  }

  static __device__ __forceinline__ void multiply(const unsigned char* slot, Products& products) {
    if constexpr (std::is_same<Accumulator, double>::value) {
      multiply_f64(slot, products);
    } else {
      multiply_tensor(slot, products);
    }
  }

  // Split values, which are to be as exact as float32, are summed stage by stage: the tensor cores do not round sums to
  // nearest, which a large depth would add up to a bias.
  static __device__ __forceinline__ void multiply_tensor(const unsigned char* slot, Products& products) {
    constexpr int kSteps = kRowBytes / 32;
    const int lane = threadIdx.x % 32;
    Fragment a[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      a[step] = load_fragment(slot, kRows, threadIdx.x / 32 * 16 + lane % 16, 2 * step + lane / 16);
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const unsigned char* columns = slot + 128 * (kRows + set * kColumns);
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        Accumulator sum[2][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const Fragment b =
              load_fragment(columns, kColumns, n * 8 + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if constexpr (P::kPieces == 2) {  // small terms first
              P::mma(sum[half], a[step].piece[1], b.piece[0][2 * half], b.piece[0][2 * half + 1]);
              P::mma(sum[half], a[step].piece[0], b.piece[1][2 * half], b.piece[1][2 * half + 1]);
              P::mma(sum[half], a[step].piece[0], b.piece[0][2 * half], b.piece[0][2 * half + 1]);
            } else {
              P::mma(products[set][n + half], a[step].piece[0], b.piece[0][2 * half], b.piece[0][2 * half + 1]);
            }
          }
        }
        if constexpr (P::kPieces == 2) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int e = 0; e < 4; ++e) products[set][n + half][e] += sum[half][e];
          }
        }
      }
    }
  }

  static __device__ __forceinline__ void multiply_f64(const unsigned char* slot, Products& products) {
#pragma unroll 1
    for (int chunk = 0; chunk < kRowBytes / 16; ++chunk) {
      double2 a[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        a[half] = *reinterpret_cast<const double2*>(slot + chunk_offset(row_of(half), chunk));
      }
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        const unsigned char* columns = slot + 128 * (kRows + set * kColumns);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int v = 0; v < 2; ++v) {
            const double2 b = *reinterpret_cast<const double2*>(columns + chunk_offset(column_of(n, v), chunk));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              double& d = products[set][n][half * 2 + v];
              d = fma(a[half].y, b.y, fma(a[half].x, b.x, d));
            }
          }
        }
      }
    }
  }
};

}  // namespace deepclust

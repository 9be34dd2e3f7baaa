// The tile product of all types against plain sums in double: with integers exactly, which proves every index, and with
// random numbers within the bound on which row functors rely.
#include <memory>
#include <type_traits>

#include "cases.h"
#include "core/cuda/numeric.cuh"
#include "core/cuda/tile_gemm.cuh"

namespace {

using namespace deepclust;
using conformance::DeviceBuffer;
using conformance::expect_near;
using conformance::Random;
using conformance::require_success;

template <class Gemm>
struct StoreProducts {
  typename Gemm::Accumulator* results;  // (sets, rows, columns)
  int64_t first_row, rows, columns;

  __device__ void operator()(int64_t first_column, typename Gemm::Products& products) const {
    for (int set = 0; set < Gemm::kSets; ++set) {
      for (int half = 0; half < 2; ++half) {
        for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
          const int64_t i = first_row + Gemm::row_of(half), j = first_column + Gemm::column_of(c / 2, c % 2);
          if (i < rows && j < columns) {
            results[(set * rows + i) * columns + j] = products[set][c / 2][half * 2 + c % 2];
          }
        }
      }
    }
  }
};

template <class P, int kSets>
struct Operands {
  TileOperand<P> rows;
  TileOperand<P> columns[kSets];
};

// Block (x, y) computes row block x against every second column tile range y.
template <class P, int kWarps, int kSets>
__global__ void __launch_bounds__(32 * kWarps)
    tile_gemm_kernel(typename P::Accumulator* results, Operands<P, kSets> operands, int64_t depth) {
  using Gemm = TileGemm<P, kWarps, kSets>;
  DEEPCLUST_DYNAMIC_SHARED(shared);
  const int64_t first_row = int64_t{blockIdx.x} * Gemm::kRows;
  const int tiles = static_cast<int>((operands.columns[0].count + Gemm::kColumns - 1) / Gemm::kColumns);
  StoreProducts<Gemm> store{results, first_row, operands.rows.count, operands.columns[0].count};
  Gemm::run(operands.rows, operands.columns, depth, first_row, tiles * static_cast<int>(blockIdx.y) / 2,
            tiles * static_cast<int>(blockIdx.y + 1) / 2, shared, store);
}

template <class P>
typename P::Element encode(double value) {
  if constexpr (std::is_same<typename P::Element, __half>::value) {
    return __float2half_rn(static_cast<float>(value));
  } else if constexpr (std::is_same<typename P::Element, __nv_bfloat16>::value) {
    return __float2bfloat16_rn(static_cast<float>(value));
  } else {
    return static_cast<typename P::Element>(value);
  }
}

template <class Element>
double decode(Element value) {
  if constexpr (std::is_same<Element, __half>::value) {
    return __half2float(value);
  } else if constexpr (std::is_same<Element, __nv_bfloat16>::value) {
    return __bfloat162float(value);
  } else {
    return value;
  }
}

// A matrix on the device, and the values that it stands for.
template <class P>
class Matrix {
 public:
  Matrix(int64_t count, int64_t depth, bool integers, Random& random) : count_(count), values_(count * depth) {
    std::vector<typename P::Element> parts[P::kParts];
    for (double& value : values_) {
      value = static_cast<float>(integers ? random.integer(-4, 4) : random.uniform(-1, 1));
      if (P::kParts == 1) value = decode(encode<P>(value));
      double rest = value;
      for (auto& part : parts) {
        part.push_back(encode<P>(rest));
        rest -= decode(part.back());
      }
    }
    for (auto& part : parts) buffers_.push_back(std::make_unique<DeviceBuffer<typename P::Element>>(part, "rows"));
  }

  TileOperand<P> operand() const {
    TileOperand<P> operand{};
    for (int part = 0; part < P::kParts; ++part) operand.part[part] = buffers_[part]->data();
    operand.count = count_;
    return operand;
  }

  double value(int64_t row, int64_t k) const { return values_[row * (values_.size() / count_) + k]; }

 private:
  int64_t count_;
  std::vector<double> values_;
  std::vector<std::unique_ptr<DeviceBuffer<typename P::Element>>> buffers_;
};

template <class P, int kWarps, int kSets>
void check_products(int stages, int64_t rows, int64_t columns, bool integers) {
  using Gemm = TileGemm<P, kWarps, kSets>;
  using T = typename P::Accumulator;
  const int64_t depth = int64_t{stages} * Gemm::kStageDepth;
  Random random(static_cast<uint64_t>(rows * columns * stages));
  const Matrix<P> x(rows, depth, integers, random);
  std::vector<std::unique_ptr<Matrix<P>>> y;
  Operands<P, kSets> operands{x.operand(), {}};
  for (int set = 0; set < kSets; ++set) {
    y.push_back(std::make_unique<Matrix<P>>(columns, depth, integers, random));
    operands.columns[set] = y.back()->operand();
  }
  DeviceBuffer<T> results(static_cast<size_t>(kSets * rows * columns), "results");
  const dim3 grid(static_cast<unsigned>((rows + Gemm::kRows - 1) / Gemm::kRows), 2);
  require_success(device::launch(tile_gemm_kernel<P, kWarps, kSets>, grid, dim3(Gemm::kThreads), Gemm::kSharedBytes,
                                 nullptr, results.data(), operands, depth));
  std::vector<double> expected, tolerance;
  for (int set = 0; set < kSets; ++set) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        double sum = 0, x_squares = 0, y_squares = 0;
        for (int64_t k = 0; k < depth; ++k) {
          sum += x.value(i, k) * y[set]->value(j, k);
          x_squares += x.value(i, k) * x.value(i, k);
          y_squares += y[set]->value(j, k) * y[set]->value(j, k);
        }
        expected.push_back(sum);
        const double relative = static_cast<double>(depth + 32) * Limits<T>::kEpsilon + P::kSplitError;
        tolerance.push_back(integers ? 0 : relative * std::sqrt(x_squares * y_squares));
      }
    }
  }
  expect_near(results.to_host(), expected, tolerance, static_cast<size_t>(columns));
}

template <class P>
void check_type() {
  check_products<P, 4, 1>(1, 16, 64, true);   // less than one block of rows, one column tile, one stage
  check_products<P, 4, 2>(2, 65, 129, true);  // fewer stages than slots; ragged both ways
  check_products<P, 8, 2>(4, 130, 70, true);  // more stages than slots
  check_products<P, 8, 1>(3, 1, 1, true);     // an empty range of tiles
  check_products<P, 4, 2>(5, 40, 200, false);
}

}  // namespace

DEVICE_CASE(tile_gemm_f32_as_tf32) { check_type<F32AsTf32>(); }
DEVICE_CASE(tile_gemm_f32_as_tf32x3) { check_type<F32AsTf32x3>(); }
DEVICE_CASE(tile_gemm_f32_as_bf16x3) { check_type<F32AsBf16x3>(); }
DEVICE_CASE(tile_gemm_f32_as_f16x3) { check_type<F32AsF16x3>(); }
DEVICE_CASE(tile_gemm_bf16) { check_type<Bf16>(); }
DEVICE_CASE(tile_gemm_f16) { check_type<F16>(); }
DEVICE_CASE(tile_gemm_f64) { check_type<F64>(); }

// Warp matrices of nvcuda::wmma: both layouts of both operands and of the result, in bfloat16, half and tf32.
#include <type_traits>

#include "cases.h"

namespace {

namespace wmma = nvcuda::wmma;
using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::expect_near;
using conformance::Random;
using conformance::results_of;
using deepclust::device::shared_array;
using deepclust::device::shared_next;

constexpr int kSize = 16;   // rows and columns of the result
constexpr int kPitch = 24;  // elements from one row or column to the next: more than a row has

template <class Precision>
struct Format {  // bfloat16 and half
  using Element = Precision;
  static constexpr int kDepth = 16;
  static __device__ Element element(float value) { return static_cast<Element>(value); }
  template <class Fragment>
  static __device__ void convert(Fragment&) {}
};

template <>
struct Format<wmma::precision::tf32> {
  using Element = float;
  static constexpr int kDepth = 8;
  static __device__ Element element(float value) { return value; }
  template <class Fragment>
  static __device__ void convert(Fragment& fragment) {
    for (int i = 0; i < fragment.num_elements; ++i) fragment.x[i] = wmma::__float_to_tf32(fragment.x[i]);
  }
};

// results[row or column * kPitch + ...] = 2 a b + c; a and b go through shared memory, c and the result do not.
template <class Precision, class LayoutA, class LayoutB>
__global__ void wmma_kernel(float* results, const float* a, const float* b, const float* c, wmma::layout_t layout) {
  using Element = typename Format<Precision>::Element;
  constexpr int kDepth = Format<Precision>::kDepth;
  DEEPCLUST_DYNAMIC_SHARED(memory);
  Element* a_shared = shared_array<Element>(memory, 0, kSize * kPitch);
  Element* b_shared = shared_array<Element>(memory, shared_next<Element>(0, kSize * kPitch), kSize * kPitch);
  for (int i = threadIdx.x; i < kSize * kPitch; i += 32) {
    a_shared[i] = Format<Precision>::element(a[i]);
    b_shared[i] = Format<Precision>::element(b[i]);
  }
  __syncwarp();
  wmma::fragment<wmma::matrix_a, kSize, kSize, kDepth, Precision, LayoutA> a_fragment;
  wmma::fragment<wmma::matrix_b, kSize, kSize, kDepth, Precision, LayoutB> b_fragment;
  wmma::fragment<wmma::accumulator, kSize, kSize, kDepth, float> product, sum;
  wmma::load_matrix_sync(a_fragment, a_shared, kPitch);
  wmma::load_matrix_sync(b_fragment, b_shared, kPitch);
  Format<Precision>::convert(a_fragment);
  Format<Precision>::convert(b_fragment);
  wmma::fill_fragment(product, 0.0f);
  wmma::mma_sync(product, a_fragment, b_fragment, product);
  wmma::load_matrix_sync(sum, c, kPitch, layout);
  for (int i = 0; i < product.num_elements; ++i) sum.x[i] = product.x[i] + sum.x[i];  // fragments of one kind agree
  wmma::mma_sync(sum, a_fragment, b_fragment, sum);
  for (int i = threadIdx.x; i < kSize * kPitch; i += 32) {
    if (i % kPitch >= kSize) results[i] = -1;  // the store leaves these alone
  }
  wmma::store_matrix_sync(results, sum, kPitch, layout);
}

// Element (row, column) of a matrix in memory.
int place(int row, int column, bool row_major) { return row_major ? row * kPitch + column : column * kPitch + row; }

template <class Precision, class LayoutA, class LayoutB>
void check(bool integers) {
  constexpr int kDepth = Format<Precision>::kDepth;
  constexpr bool kRowA = std::is_same<LayoutA, wmma::row_major>::value;
  constexpr bool kRowB = std::is_same<LayoutB, wmma::row_major>::value;
  Random random(31);
  const auto operand = [&] {  // exact in every format
    return static_cast<float>(integers ? random.integer(-9, 9) : std::ldexp(random.integer(-255, 255), -7));
  };
  std::vector<float> a(kSize * kPitch), b(kSize * kPitch), c(kSize * kPitch);
  for (auto* matrix : {&a, &b, &c}) {
    for (float& value : *matrix) value = operand();
  }
  for (bool row_major : {true, false}) {
    std::vector<double> expected(kSize * kPitch, -1), tolerance(kSize * kPitch, 0);
    for (int row = 0; row < kSize; ++row) {
      for (int column = 0; column < kSize; ++column) {
        double sum = 0, magnitude = 0;
        for (int k = 0; k < kDepth; ++k) {
          const double term = static_cast<double>(a[place(row, k, kRowA)]) * b[place(k, column, kRowB)];
          sum += term;
          magnitude += std::fabs(term);
        }
        const int at = place(row, column, row_major);
        expected[at] = 2 * sum + c[at];
        // As in mma_cases.cu, for two products and one addition.
        if (!integers) tolerance[at] = (2 * (kDepth + 2) + 1) * 0x1p-23 * (2 * magnitude + std::fabs(c[at]));
      }
    }
    const DeviceBuffer<float> device_a(a, "a"), device_b(b, "b"), device_c(c, "c");
    using Element = typename Format<Precision>::Element;
    const size_t shared_bytes = shared_next<Element>(shared_next<Element>(0, kSize * kPitch), kSize * kPitch);
    expect_near(
        results_of(expected.size(), 1, 32, shared_bytes, wmma_kernel<Precision, LayoutA, LayoutB>, device_a.data(),
                   device_b.data(), device_c.data(), row_major ? wmma::mem_row_major : wmma::mem_col_major),
        expected, tolerance, kPitch);
  }
}

template <class Precision>
void check_layouts() {
  for (bool integers : {true, false}) {
    check<Precision, wmma::row_major, wmma::row_major>(integers);
    check<Precision, wmma::row_major, wmma::col_major>(integers);
    check<Precision, wmma::col_major, wmma::row_major>(integers);
    check<Precision, wmma::col_major, wmma::col_major>(integers);
  }
}

DEVICE_CASE(wmma_bfloat16) { check_layouts<__nv_bfloat16>(); }
DEVICE_CASE(wmma_half) { check_layouts<__half>(); }
DEVICE_CASE(wmma_tf32) { check_layouts<wmma::precision::tf32>(); }

}  // namespace

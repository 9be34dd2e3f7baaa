// The three tensor-core products. Operands are laid out by the element maps of the PTX ISA ("Matrix Fragments for
// mma.m16n8k8", "... mma.m16n8k16"): one-hot matrices show where each element goes, random ones how sums are rounded.
#include "cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::expect_near;
using conformance::Random;
using conformance::warp_results_of;

constexpr int kRows = 16, kColumns = 8;

uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct Tf32 {
  static constexpr int kDepth = 8, kPerRegister = 1;
  static uint32_t encode(float value) { return float_bits(value); }
  static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    deepclust::device::mma_m16n8k8_tf32(d, a, b0, b1);
  }
};

struct Bf16 {
  static constexpr int kDepth = 16, kPerRegister = 2;
  static uint32_t encode(float value) { return float_bits(value) >> 16; }
  static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    deepclust::device::mma_m16n8k16_bf16(d, a, b0, b1);
  }
};

struct F16 {
  static constexpr int kDepth = 16, kPerRegister = 2;
  static uint32_t encode(float value) {  // of zero and of numbers that are normal in half
    const uint32_t bits = float_bits(value);
    const uint32_t magnitude = value == 0 ? 0 : ((bits >> 13) & 0x3ffff) - ((127 - 15) << 10);
    return (bits >> 31) << 15 | magnitude;
  }
  static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    deepclust::device::mma_m16n8k16_f16(d, a, b0, b1);
  }
};

// Registers of all lanes: operands[which * 32 + lane].
template <class Format>
__global__ void mma_kernel(float* results, const uint32_t* a, const uint32_t* b, const float* c, int count) {
  const int lane = threadIdx.x;
  for (int i = 0; i < count; ++i) {
    uint32_t a_registers[4];
    float d[4];
    for (int r = 0; r < 4; ++r) {
      a_registers[r] = a[(i * 4 + r) * 32 + lane];
      d[r] = c[(i * 4 + r) * 32 + lane];
    }
    Format::mma(d, a_registers, b[i * 2 * 32 + lane], b[(i * 2 + 1) * 32 + lane]);
    for (int r = 0; r < 4; ++r) results[(i * 4 + r) * 32 + lane] = d[r];
  }
}

// Where an element of the accumulator is: register * 32 + lane.
int accumulator_place(int row, int column) { return (row / 8 * 2 + column % 2) * 32 + row % 8 * 4 + column / 2; }

// A list of products to run. Values must be exact in the format.
template <class Format>
class Products {
 public:
  static constexpr int kDepth = Format::kDepth;
  using A = float[kRows][kDepth];
  using B = float[kDepth][kColumns];
  using C = float[kRows][kColumns];

  void add(const A& a, const B& b, const C& c) {
    const size_t a_start = a_.size(), b_start = b_.size(), c_start = c_.size();
    a_.resize(a_start + 4 * 32, 0);
    b_.resize(b_start + 2 * 32, 0);
    c_.resize(c_start + 4 * 32);
    for (int k = 0; k < kDepth; ++k) {
      // Neighbors in depth share a register; the two halves of the depth are in different ones.
      const int quad_lane = k % (kDepth / 2) / Format::kPerRegister, part = k / (kDepth / 2);
      const int shift = k % Format::kPerRegister * 16;
      for (int row = 0; row < kRows; ++row) {
        a_[a_start + (row / 8 + part * 2) * 32 + row % 8 * 4 + quad_lane] |= Format::encode(a[row][k]) << shift;
      }
      for (int column = 0; column < kColumns; ++column) {
        b_[b_start + part * 32 + column * 4 + quad_lane] |= Format::encode(b[k][column]) << shift;
      }
    }
    const size_t place = expected_.size();
    expected_.resize(place + 4 * 32);
    tolerance_.resize(place + 4 * 32);
    for (int row = 0; row < kRows; ++row) {
      for (int column = 0; column < kColumns; ++column) {
        double sum = c[row][column], magnitude = std::fabs(sum);
        for (int k = 0; k < kDepth; ++k) {
          sum += static_cast<double>(a[row][k]) * b[k][column];
          magnitude += std::fabs(static_cast<double>(a[row][k]) * b[k][column]);
        }
        const int at = accumulator_place(row, column);
        c_[c_start + at] = c[row][column];
        expected_[place + at] = sum;
        // The order of the additions is unspecified. Each term may lose a unit of the last place of the largest partial
        // sum, which is at most `magnitude`, and the total one more.
        tolerance_[place + at] = (kDepth + 2) * 0x1p-23 * magnitude;
      }
    }
  }

  std::vector<float> run() const {
    const DeviceBuffer<uint32_t> a(a_, "a"), b(b_, "b");
    const DeviceBuffer<float> c(c_, "c");
    const int count = static_cast<int>(c_.size() / (4 * 32));
    return warp_results_of(count * 4, mma_kernel<Format>, a.data(), b.data(), c.data(), count);
  }

  void expect_exact() const { expect_equal(run(), std::vector<float>(expected_.begin(), expected_.end())); }
  void expect_within_rounding() const { expect_near(run(), expected_, tolerance_); }

 private:
  std::vector<uint32_t> a_, b_;
  std::vector<float> c_;
  std::vector<double> expected_, tolerance_;
};

// All sums are below 2^11, hence exact. The elements of the other matrices are all different.
template <class Format>
void check_one_hot() {
  constexpr int kDepth = Format::kDepth;
  typename Products<Format>::A a_distinct, a = {};
  typename Products<Format>::B b_distinct, b = {};
  typename Products<Format>::C c;
  for (int k = 0; k < kDepth; ++k) {
    for (int row = 0; row < kRows; ++row) a_distinct[row][k] = static_cast<float>(1 + row * kDepth + k);
    for (int column = 0; column < kColumns; ++column) {
      b_distinct[k][column] = -static_cast<float>(1 + k * kColumns + column);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column)
      c[row][column] = static_cast<float>(300 + row * kColumns + column);
  }
  Products<Format> products;
  for (int k = 0; k < kDepth; ++k) {
    for (int row = 0; row < kRows; ++row) {
      a[row][k] = 1;
      products.add(a, b_distinct, c);
      a[row][k] = 0;
    }
    for (int column = 0; column < kColumns; ++column) {
      b[k][column] = 1;
      products.add(a_distinct, b, c);
      b[k][column] = 0;
    }
  }
  products.expect_exact();
}

DEVICE_CASE(mma_tf32_map) { check_one_hot<Tf32>(); }
DEVICE_CASE(mma_bf16_map) { check_one_hot<Bf16>(); }
DEVICE_CASE(mma_f16_map) { check_one_hot<F16>(); }

template <class Format>
void check_random() {
  Random random(21);
  const auto operand = [&] {  // at most 8 significant digits
    return static_cast<float>(std::ldexp(random.integer(-255, 255), random.integer(-9, -5)));
  };
  Products<Format> products;
  for (int i = 0; i < 20; ++i) {
    typename Products<Format>::A a;
    typename Products<Format>::B b;
    typename Products<Format>::C c;
    for (auto& row : a)
      for (float& value : row) value = operand();
    for (auto& row : b)
      for (float& value : row) value = operand();
    for (auto& row : c)
      for (float& value : row) value = static_cast<float>(random.uniform(-30, 30));
    products.add(a, b, c);
  }
  products.expect_within_rounding();
}

DEVICE_CASE(mma_tf32_random) { check_random<Tf32>(); }
DEVICE_CASE(mma_bf16_random) { check_random<Bf16>(); }
DEVICE_CASE(mma_f16_random) { check_random<F16>(); }

}  // namespace

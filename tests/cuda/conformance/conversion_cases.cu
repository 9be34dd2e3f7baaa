// Roundings to half, bfloat16 and tf32: ties, overflow, subnormal numbers, infinities, NaN.
#include <algorithm>
#include <limits>

#include "cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::results_of;

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Numbers at, halfway between and next to neighbors of formats with 10 and with 7 explicit bits, in many binades.
std::vector<float> hard_numbers() {
  std::vector<float> numbers;
  for (uint32_t exponent :
       {0u, 1u, 90u, 102u, 103u, 104u, 111u, 112u, 113u, 126u, 127u, 128u, 141u, 142u, 143u, 254u}) {
    for (uint32_t dropped : {13u, 16u}) {
      const uint32_t unit = 1u << dropped, tie = unit / 2;
      for (uint32_t mantissa : {0u, unit, 2 * unit, 3 * unit, 0x00400000u, 0x007fffffu / unit * unit}) {
        for (uint32_t part : {0u, 1u, tie - 1, tie, tie + 1, unit - 1}) {
          numbers.push_back(float_of(exponent << 23 | mantissa | part));
          numbers.push_back(-numbers.back());
        }
      }
    }
  }
  const float infinity = std::numeric_limits<float>::infinity();
  numbers.insert(numbers.end(), {infinity, -infinity, 65504.0f, 65519.0f, 65520.0f, -65520.0f});
  return numbers;
}

// The nearest number of a format with `digits` significant binary digits, none below 2^lowest; in double, exactly.
// Ties go to the even neighbor or, if asked, away from zero. Results from 2^limit on are infinite.
double rounded(float value, int digits, int lowest, int limit, bool ties_away) {
  if (value == 0 || std::isinf(value)) return value;
  int exponent;
  std::frexp(value, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - digits, lowest));
  const double quotient = std::fabs(value) / unit, below = std::floor(quotient), rest = quotient - below;
  const bool up = rest > 0.5 || (rest == 0.5 && (ties_away || std::fmod(below, 2.0) == 1));
  const double result = (below + up) * unit;
  return std::copysign(result >= std::ldexp(1.0, limit) ? std::numeric_limits<double>::infinity() : result, value);
}

constexpr int kThreads = 128;

__device__ int thread_index() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

__global__ void half_kernel(float* results, const float* values, int count) {
  const int i = thread_index();
  if (i >= count) return;
  results[i] = __half2float(__float2half(values[i]));
  results[count + i] = __half2float(__float2half_rn(values[i]));
  const __half2 pair = __floats2half2_rn(values[i], 1.0f);
  results[2 * count + i] = __low2float(pair);
  results[3 * count + i] = static_cast<float>(static_cast<__half>(values[i]));
}

__global__ void bfloat16_kernel(float* results, const float* values, int count) {
  const int i = thread_index();
  if (i >= count) return;
  results[i] = __bfloat162float(__float2bfloat16(values[i]));
  results[count + i] = __bfloat162float(__float2bfloat16_rn(values[i]));
  const __nv_bfloat162 pair = __floats2bfloat162_rn(values[i], 1.0f);
  results[2 * count + i] = __low2float(pair);
  results[3 * count + i] = static_cast<float>(static_cast<__nv_bfloat16>(values[i]));
}

__global__ void tf32_kernel(uint32_t* results, const float* values, int count) {
  const int i = thread_index();
  if (i < count) results[i] = deepclust::device::float_to_tf32(values[i]);
}

template <class T>
std::vector<T> converted(void (*kernel)(T*, const float*, int), const std::vector<float>& values, int results) {
  const DeviceBuffer<float> input(values, "values");
  const int count = static_cast<int>(values.size());
  return results_of(static_cast<size_t>(count * results), (count + kThreads - 1) / kThreads, kThreads, 0, kernel,
                    input.data(), count);
}

std::vector<float> expected_conversions(const std::vector<float>& values, int digits, int lowest, int limit) {
  std::vector<float> expected;
  for (int variant = 0; variant < 4; ++variant) {
    for (float value : values) expected.push_back(static_cast<float>(rounded(value, digits, lowest, limit, false)));
  }
  return expected;
}

DEVICE_CASE(float_to_half_and_back) {
  const std::vector<float> values = hard_numbers();
  expect_equal(converted(half_kernel, values, 4), expected_conversions(values, 11, -24, 16), values.size());
}

DEVICE_CASE(float_to_bfloat16_and_back) {
  const std::vector<float> values = hard_numbers();
  expect_equal(converted(bfloat16_kernel, values, 4), expected_conversions(values, 8, -133, 128), values.size());
}

DEVICE_CASE(float_to_tf32_rounds_to_nearest) {
  const std::vector<float> values = hard_numbers();
  std::vector<uint32_t> expected;
  for (float value : values) {
    expected.push_back(bits_of(static_cast<float>(rounded(value, 11, -136, 128, true))));
  }
  expect_equal(converted(tf32_kernel, values, 1), expected, values.size());
}

bool is_nan(float value) { return value != value; }

DEVICE_CASE(conversions_keep_nan) {
  // The narrow formats drop low mantissa bits; a NaN that has only those must not become infinite.
  const std::vector<float> values = {float_of(0x7fc00000u), float_of(0xffc00000u), float_of(0x7fffffffu),
                                     float_of(0x7f800001u), float_of(0xff801000u)};
  std::vector<int> kept;
  for (float result : converted(half_kernel, values, 4)) kept.push_back(is_nan(result));
  for (float result : converted(bfloat16_kernel, values, 4)) kept.push_back(is_nan(result));
  for (uint32_t result : converted(tf32_kernel, values, 1)) kept.push_back(is_nan(float_of(result)));
  expect_equal(kept, std::vector<int>(kept.size(), 1), values.size());
}

__global__ void packing_kernel(uint32_t* results, float low, float high) {  // the first value is in the low half
  const __half2 half_pair = __floats2half2_rn(low, high);
  const __nv_bfloat162 bfloat16_pair = __floats2bfloat162_rn(low, high);
  results[0] = *reinterpret_cast<const uint32_t*>(&half_pair);
  results[1] = *reinterpret_cast<const uint32_t*>(&bfloat16_pair);
  results[2] = __float_as_uint(__high2float(half_pair));
  results[3] = __float_as_uint(__high2float(bfloat16_pair));
}

DEVICE_CASE(pairs_of_narrow_floats) {
  const std::vector<uint32_t> expected = {0xc0003c00u, 0xc0003f80u, 0xc0000000u, 0xc0000000u};
  expect_equal(results_of(4, 1, 1, 0, packing_kernel, 1.0f, -2.0f), expected, 1);
}

}  // namespace

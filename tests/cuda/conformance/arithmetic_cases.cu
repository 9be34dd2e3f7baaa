// Bit counts, bit casts and floating-point functions. Functions may err by what the CUDA C++ Programming Guide states
// in units of the last place (its appendix on mathematical functions).
#include <limits>

#include "cases.h"

namespace {

using conformance::DeviceBuffer;
using conformance::expect_equal;
using conformance::expect_near;
using conformance::Random;
using conformance::results_of;

const std::vector<unsigned> kWords = {0u,          1u,          2u,          3u,          0x80000000u,
                                      0xffffffffu, 0x00010000u, 0x12345678u, 0x7fffffffu, 40u};

__global__ void bits_kernel(int* results, const unsigned* words, int count) {
  const int i = threadIdx.x;
  results[i] = __popc(words[i]);
  results[count + i] = __clz(static_cast<int>(words[i]));
  results[2 * count + i] = __ffs(static_cast<int>(words[i]));
  results[3 * count + i] = static_cast<int>(__brev(words[i]));
}

DEVICE_CASE(bit_counts) {
  std::vector<int> population, leading, first, reversed;
  for (unsigned word : kWords) {
    population.push_back(0);
    leading.push_back(32);
    first.push_back(0);
    unsigned reverse = 0;
    for (int bit = 31; bit >= 0; --bit) {
      if (!(word >> bit & 1)) continue;
      ++population.back();
      if (leading.back() == 32) leading.back() = 31 - bit;
      first.back() = bit + 1;
      reverse |= 1u << (31 - bit);
    }
    reversed.push_back(static_cast<int>(reverse));
  }
  std::vector<int> expected;
  for (const auto& part : {population, leading, first, reversed}) {
    expected.insert(expected.end(), part.begin(), part.end());
  }
  const int count = static_cast<int>(kWords.size());
  const DeviceBuffer<unsigned> words(kWords, "words");
  expect_equal(results_of(expected.size(), 1, count, 0, bits_kernel, words.data(), count), expected, count);
}

__global__ void wide_bits_kernel(int* results, const unsigned* words, int count) {
  for (int j = 0, i = threadIdx.x; j < count; ++j) {
    const auto word = static_cast<long long>(static_cast<unsigned long long>(words[i]) << 32 | words[j]);
    int* to = results + (j * count + i) * 3;
    to[0] = __popcll(static_cast<unsigned long long>(word));
    to[1] = __clzll(word);
    to[2] = __ffsll(word);
  }
}

DEVICE_CASE(bit_counts_of_64_bits) {
  std::vector<int> expected;
  for (unsigned low : kWords) {
    for (unsigned high : kWords) {
      int population = 0, leading = 64, first = 0;
      for (int bit = 63; bit >= 0; --bit) {
        if (!((bit >= 32 ? high >> (bit - 32) : low >> bit) & 1)) continue;
        ++population;
        if (leading == 64) leading = 63 - bit;
        first = bit + 1;
      }
      for (int result : {population, leading, first}) expected.push_back(result);
    }
  }
  const int count = static_cast<int>(kWords.size());
  const DeviceBuffer<unsigned> words(kWords, "words");
  expect_equal(results_of(expected.size(), 1, count, 0, wide_bits_kernel, words.data(), count), expected, 3);
}

__global__ void bit_cast_kernel(unsigned long long* results, const float* floats, const double* doubles) {
  const int i = threadIdx.x;
  results[i * 7] = __float_as_uint(floats[i]);
  results[i * 7 + 1] = static_cast<unsigned long long>(__float_as_int(floats[i]));
  results[i * 7 + 2] = __float_as_uint(__uint_as_float(__float_as_uint(floats[i])));
  results[i * 7 + 3] = __float_as_uint(__int_as_float(__float_as_int(floats[i])));
  results[i * 7 + 4] = static_cast<unsigned long long>(__double_as_longlong(doubles[i]));
  results[i * 7 + 5] =
      static_cast<unsigned long long>(__double_as_longlong(__longlong_as_double(__double_as_longlong(doubles[i]))));
  results[i * 7 + 6] = __ldg(reinterpret_cast<const unsigned long long*>(doubles) + i);
}

DEVICE_CASE(bit_casts) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> floats = {0.0f, -0.0f, 1.0f, -2.5f, 1e-40f, infinity, -infinity, 3.4e38f};
  std::vector<double> doubles;
  std::vector<unsigned long long> expected;
  for (float value : floats) {
    doubles.push_back(value * 1e-300);
    uint32_t bits;
    int32_t signed_bits;
    uint64_t wide_bits;
    std::memcpy(&bits, &value, 4);
    std::memcpy(&signed_bits, &value, 4);
    std::memcpy(&wide_bits, &doubles.back(), 8);
    const auto extended = static_cast<unsigned long long>(signed_bits);
    for (unsigned long long result :
         {uint64_t(bits), uint64_t(extended), uint64_t(bits), uint64_t(bits), wide_bits, wide_bits, wide_bits}) {
      expected.push_back(result);
    }
  }
  const DeviceBuffer<float> input(floats, "floats");
  const DeviceBuffer<double> wide(doubles, "doubles");
  expect_equal(results_of(expected.size(), 1, 8, 0, bit_cast_kernel, input.data(), wide.data()), expected, 7);
}

constexpr int kExactResults = 11;

__global__ void exact_kernel(double* results, const float* a, const float* b, int count) {
  const int i = threadIdx.x, step = count;
  const float x = a[i], y = b[i];
  const double wide_x = x, wide_y = y;
  results[i] = fmaf(x, y, -1.0f);
  results[step + i] = fma(wide_x, wide_y, 0.1);
  results[2 * step + i] = fabsf(x);
  results[3 * step + i] = fabs(-wide_x);
  results[4 * step + i] = fminf(x, y);
  results[5 * step + i] = fmaxf(x, y);
  results[6 * step + i] = fmin(wide_x, wide_y);
  results[7 * step + i] = fmax(wide_x, wide_y);
  results[8 * step + i] = sqrt(wide_x * wide_x + 2.0);
  results[9 * step + i] = min(static_cast<int>(x * 100), static_cast<int>(y * 100));
  results[10 * step + i] = max(static_cast<long long>(x * 100), static_cast<long long>(y * 100));
}

DEVICE_CASE(exact_functions) {
  Random random(11);
  std::vector<float> a, b;
  for (int i = 0; i < 64; ++i) {
    a.push_back(static_cast<float>(random.uniform(-4, 4)));
    b.push_back(static_cast<float>(random.uniform(-4, 4)));
  }
  std::vector<double> expected(64 * kExactResults);
  for (int i = 0; i < 64; ++i) {
    const float x = a[i], y = b[i];
    const double wide_x = x, wide_y = y;
    expected[i] = std::fma(x, y, -1.0f);
    expected[64 + i] = std::fma(wide_x, wide_y, 0.1);
    expected[128 + i] = expected[192 + i] = x < 0 ? -x : x;
    expected[256 + i] = expected[384 + i] = x < y ? x : y;
    expected[320 + i] = expected[448 + i] = x < y ? y : x;
    expected[512 + i] = std::sqrt(wide_x * wide_x + 2.0);
    const int low = static_cast<int>(x * 100), high = static_cast<int>(y * 100);
    expected[576 + i] = low < high ? low : high;
    expected[640 + i] = low < high ? high : low;
  }
  const DeviceBuffer<float> device_a(a, "a"), device_b(b, "b");
  expect_equal(results_of(expected.size(), 1, 64, 0, exact_kernel, device_a.data(), device_b.data(), 64), expected, 64);
}

// fmin and fmax ignore a NaN; comparisons with it are false.
__global__ void nan_kernel(float* results, float nan) {
  results[0] = fmaxf(nan, 1.0f);
  results[1] = fminf(2.0f, nan);
  results[2] = static_cast<float>(fmax(3.0, static_cast<double>(nan)));
  results[3] = static_cast<float>(fmin(static_cast<double>(nan), 4.0));
  results[4] = isnan(fmaxf(nan, nan)) ? 1.0f : 0.0f;
  results[5] = nan < 1.0f || nan >= 1.0f || nan == nan ? 1.0f : 0.0f;
}

DEVICE_CASE(nan_in_minimum_and_maximum) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect_equal(results_of(6, 1, 1, 0, nan_kernel, nan), {1, 2, 3, 4, 1, 0});
}

constexpr int kFunctions = 6;

__global__ void function_kernel(double* results, const double* points, int count) {
  const int i = threadIdx.x;
  const double x = points[i];
  const auto narrow = static_cast<float>(x);
  results[i] = exp(x);
  results[count + i] = log1p(x * x);
  results[2 * count + i] = expf(narrow);
  results[3 * count + i] = rsqrtf(narrow * narrow + 0.5f);
  results[4 * count + i] = __expf(narrow);
  results[5 * count + i] = __logf(narrow * narrow + 0.25f);
}

DEVICE_CASE(rounded_functions) {
  Random random(12);
  std::vector<double> points;
  for (int i = 0; i < 128; ++i) points.push_back(static_cast<float>(random.uniform(-8, 8)));
  std::vector<double> expected(128 * kFunctions), tolerance(128 * kFunctions);
  const auto set = [&](int which, int i, double value, double units, double epsilon) {
    expected[which * 128 + i] = value;
    tolerance[which * 128 + i] = units * epsilon * std::fabs(value);  // a unit is at most epsilon times the value
  };
  const double wide = std::numeric_limits<double>::epsilon(), narrow = std::numeric_limits<float>::epsilon();
  for (int i = 0; i < 128; ++i) {
    const double x = points[i];
    const auto root = static_cast<double>(std::fma(static_cast<float>(x), static_cast<float>(x), 0.5f));
    const auto argument = static_cast<double>(std::fma(static_cast<float>(x), static_cast<float>(x), 0.25f));
    set(0, i, std::exp(x), 1 + 1, wide);  // one more for the host's own
    set(1, i, std::log1p(x * x), 1 + 1, wide);
    set(2, i, std::exp(x), 1, narrow);
    set(3, i, 1 / std::sqrt(root), 2 + 1, narrow);  // one more for an argument that is rounded twice
    set(4, i, std::exp(x), 2 + std::floor(std::fabs(1.173 * x)), narrow);
    set(5, i, std::log(argument), 3, narrow);
    // The argument may be rounded twice too, and between 0.5 and 2 the error of __logf is absolute.
    tolerance[5 * 128 + i] += std::pow(2.0, -21.41) + narrow;
  }
  const DeviceBuffer<double> input(points, "points");
  expect_near(results_of(expected.size(), 1, 128, 0, function_kernel, input.data(), 128), expected, tolerance, 128);
}

}  // namespace

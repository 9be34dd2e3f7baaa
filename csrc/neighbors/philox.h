// Random numbers by counter: Philox4x32-10 (Salmon et al., SC 2011, https://doi.org/10.1145/2063384.2063405), the same
// on every device. A number depends on the seed and on what it is for, never on who computes it or when.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace deepclust {

// Turns a counter of four 32-bit words into four random ones. Word is uint64_t, or a vector of them for several
// counters side by side: 32 bits in each lane of 64, so that products fit.
template <class Word>
DEEPCLUST_SHARED_INLINE constexpr void philox(Word (&words)[4], uint64_t seed) {
  constexpr uint64_t kMultiplier[2] = {0xD2511F53, 0xCD9E8D57};
  constexpr uint64_t kIncrement[2] = {0x9E3779B9, 0xBB67AE85};
  constexpr uint64_t kLow = 0xFFFFFFFF;
  uint64_t key[2] = {seed & kLow, seed >> 32};
  for (int round = 0; round < 10; ++round) {
    const Word first = words[0] * kMultiplier[0], second = words[2] * kMultiplier[1];
    words[0] = (second >> 32) ^ words[1] ^ key[0];
    words[1] = second & kLow;
    words[2] = (first >> 32) ^ words[3] ^ key[1];
    words[3] = first & kLow;
    for (int half = 0; half < 2; ++half) key[half] = (key[half] + kIncrement[half]) & kLow;
  }
}

// The last word of a counter says what the number is for; that leaves 31 bits of it and 32 of the third for a row.
constexpr uint64_t kNoiseCounter = 0, kDrawCounter = uint64_t{1} << 31;

// The 53 random bits that sample `sample` of row `row` draws with at step `step`, as a number in [0, 1).
DEEPCLUST_SHARED_INLINE double philox_uniform(uint64_t seed, int64_t row, int64_t sample, int64_t step) {
  uint64_t words[4] = {static_cast<uint64_t>(step), static_cast<uint64_t>(sample),
                       static_cast<uint64_t>(row) & 0xFFFFFFFF, static_cast<uint64_t>(row) >> 32 | kDrawCounter};
  philox(words, seed);
  return static_cast<double>(words[0] << 21 | words[1] >> 11) * (1.0 / (uint64_t{1} << 53));
}

// Sine and cosine for |x| <= pi / 4, to about a rounding of float64; V is Real or a vector of it.
template <class Real, class V>
DEEPCLUST_SHARED_INLINE void sine_and_cosine(const V& x, V& sine, V& cosine) {
  const V square = x * x;
  V odd = square * Real(-1.0 / 1307674368000) + Real(1.0 / 6227020800);
  V even = square * Real(1.0 / 20922789888000) - Real(1.0 / 87178291200);
  odd = odd * square - Real(1.0 / 39916800);
  even = even * square + Real(1.0 / 479001600);
  odd = odd * square + Real(1.0 / 362880);
  even = even * square - Real(1.0 / 3628800);
  odd = odd * square - Real(1.0 / 5040);
  even = even * square + Real(1.0 / 40320);
  odd = odd * square + Real(1.0 / 120);
  even = even * square - Real(1.0 / 720);
  odd = odd * square - Real(1.0 / 6);
  even = even * square + Real(1.0 / 24);
  even = even * square - Real(0.5);
  sine = odd * square * x + x;
  cosine = even * square + Real(1);
}

// The Box-Muller transform turns two words into two normal numbers, radius times cosine and sine, with
//     radius = sqrt(-2 log((word_0 + 1/2) / 2^32))      angle = 2 pi word_1 / 2^32
// The angle is taken apart into quarter turns, to the nearest, and the rest.
constexpr double kRestToRadians = 1.5707963267948966 / (1 << 30);
constexpr uint64_t kHalfQuarter = uint64_t{1} << 29;

}  // namespace deepclust

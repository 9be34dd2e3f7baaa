// The HSD loss of one row from its mined distances, and the sums that loss and statistics are made of; the same code on
// CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace deepclust {

// What the mining knows of a row; T is the accumulation type. Absent pairs have index -1, distance 0 and inverse 0.
template <typename T>
struct MinedRow {
  int64_t positive_index, negative_index;
  T positive, negative;                  // teacher-student distances
  T positive_teacher, negative_teacher;  // teacher-teacher distances
  T positive_inverse, negative_inverse;  // 1 / distance, 0 where it is clamped
};

template <typename T>
struct HsdRow {
  T loss;
  T positive_slope;  // dloss/dD / D
  T negative_slope;
};

constexpr int kHsdSums = 7;  // loss, rows without positive, without negative, with wp = 0, with wn = 0, D_ip, D_in
constexpr int kHsdStats = 5;

// Adds to `sums` what the row contributes.
template <typename T>
DEEPCLUST_HOST_DEVICE inline HsdRow<T> hsd_row(const MinedRow<T>& row, double temperature,
                                               double* sums /* (kHsdSums,) */) {
  // Weights are differences of distances in T, which cancel to exactly 0 where the distances are equal. The comparison
  // lets NaN through.
  const T positive_excess = row.positive - row.positive_teacher, negative_excess = row.negative_teacher - row.negative;
  const T positive_weight = positive_excess < T(0) ? T(0) : positive_excess;
  const T negative_weight = negative_excess < T(0) ? T(0) : negative_excess;
  const double exponent =
      (double(positive_weight) * row.positive - double(negative_weight) * row.negative) / temperature;
  const double decay = exp(-fabs(exponent));  // never overflows
  const double sigma = exponent > 0 ? 1 / (1 + decay) : decay / (1 + decay);
  const T loss = static_cast<T>(fmax(exponent, 0.0) + log1p(decay));
  sums[0] += loss;
  sums[1] += row.positive_index < 0;
  sums[2] += row.negative_index < 0;
  sums[3] += positive_weight == T(0);
  sums[4] += negative_weight == T(0);
  sums[5] += row.positive;
  sums[6] += row.negative;
  return {loss, static_cast<T>(sigma * positive_weight * row.positive_inverse / temperature),
          static_cast<T>(-sigma * negative_weight * row.negative_inverse / temperature)};
}

// Shares of anchors with wn = 0, with wp = 0 and without a negative, mean D_ip, mean D_in over the pairs there are.
template <typename T>
DEEPCLUST_HOST_DEVICE inline void hsd_stats(const double* sums /* (kHsdSums,) */, int64_t count,
                                            T* stats /* (kHsdStats,) */) {
  const double rows = count > 1 ? static_cast<double>(count) : 1.0;
  stats[0] = static_cast<T>(sums[4] / rows);
  stats[1] = static_cast<T>(sums[3] / rows);
  stats[2] = static_cast<T>(sums[2] / rows);
  stats[3] = static_cast<T>(sums[5] / fmax(count - sums[1], 1.0));
  stats[4] = static_cast<T>(sums[6] / fmax(count - sums[2], 1.0));
}

}  // namespace deepclust

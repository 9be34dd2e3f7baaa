// The contrastive loss of one anchor from its positive score and the sums over its negatives, and what the backward
// pass needs of it; the same code on CPU and CUDA. Sums are relative to a score of the anchor: however large scores
// are, what is stored of them loses no digits.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace deepclust {

struct ContrastiveOptions {
  double temperature;
  double hardness;
  double debias;
  double class_temperature;
  int64_t negatives;  // R, of every anchor
};

// Rows of `row_values`. A negative's share in the gradient is
//     dloss_i/ds_ij = slope exp((1 + hardness) (s_ij - shift)) - weight_slope exp(hardness (s_ij - shift)).
enum ContrastiveValue {
  kPositiveSlope,  // dloss_i/ds_i,pos
  kSlope,
  kWeightSlope,
  kShift,
  kContrastiveValues
};

// Sums over the negatives of exp((1 + hardness) (s - shift)) and, for hardness > 0, of exp(hardness (s - shift)).
struct ContrastiveSums {
  double shift, sum, weight_sum;
};

struct ContrastiveRow {
  double loss, positive_slope, slope, weight_slope;
};

DEEPCLUST_HOST_DEVICE inline ContrastiveRow contrastive_row(double positive, const ContrastiveSums& sums,
                                                            const ContrastiveOptions& options) {
  if (options.negatives == 0) return {0 * positive, 0 * positive, 0 * positive, 0 * positive};
  double log_g = log(sums.sum);
  if (options.hardness > 0) log_g += log(static_cast<double>(options.negatives)) - log(sums.weight_sum);
  log_g += sums.shift;
  double by_log_g = 1, by_positive = 0;  // derivatives of the debiased log G
  if (options.debias > 0) {
    const double log_count = log(static_cast<double>(options.negatives));
    const double removed = exp(fmin(log(options.debias) + log_count + positive - log_g, 0.0));
    const double debiased = log_g + log1p(-removed) - log1p(-options.debias);  // -inf where nothing is left
    const double floor = log_count - 1 / options.temperature;
    if (debiased <= floor) {
      log_g = floor;
      by_log_g = 0;
    } else {  // or NaN
      log_g = debiased;
      by_log_g = 1 / (1 - removed);
      by_positive = -removed / (1 - removed);
    }
  }
  const double margin = log_g - positive;
  const double decay = exp(-fabs(margin));  // never overflows
  const double sigma = margin > 0 ? 1 / (1 + decay) : decay / (1 + decay);
  const double by_sum = sigma * by_log_g;  // dloss/dlog G, before debiasing
  return {fmax(margin, 0.0) + log1p(decay), sigma * (by_positive - 1), by_sum * (1 + options.hardness) / sums.sum,
          options.hardness > 0 ? by_sum * options.hardness / sums.weight_sum : 0};
}

}  // namespace deepclust

// The contrastive loss of one anchor from its positive score and the sums over its negatives, and what the backward
// pass needs of it; the same code on CPU and CUDA. In double and in logarithms: scores of any size are safe.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace deepclust {

struct ContrastiveOptions {
  double temperature;
  double hardness;
  double debias;
  double class_temperature;
  int64_t negatives;  // R, of every anchor
};

// Rows of `row_values`. A negative's share in the gradient is, with the log-sums of the row,
//     dloss_i/ds_ij = negative_slope ((1 + hardness) exp((1 + hardness) s_ij - log_sum)
//                                     - hardness exp(hardness s_ij - weight_log_sum)).
enum ContrastiveValue {
  kPositiveSlope,  // dloss_i/ds_i,pos
  kNegativeSlope,  // dloss_i/dlog G_i, before debiasing
  kLogSum,         // log sum_neg exp((1 + hardness) s_ij)
  kWeightLogSum,   // log sum_neg exp(hardness s_ij), for hardness > 0
  kContrastiveValues
};

struct ContrastiveRow {
  double loss, positive_slope, negative_slope;
};

DEEPCLUST_HOST_DEVICE inline ContrastiveRow contrastive_row(double positive, double log_sum, double weight_log_sum,
                                                            const ContrastiveOptions& options) {
  if (options.negatives == 0) return {0 * positive, 0 * positive, 0 * positive};
  double log_g = log_sum;
  if (options.hardness > 0) log_g += log(static_cast<double>(options.negatives)) - weight_log_sum;
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
  return {fmax(margin, 0.0) + log1p(decay), sigma * (by_positive - 1), sigma * by_log_g};
}

}  // namespace deepclust

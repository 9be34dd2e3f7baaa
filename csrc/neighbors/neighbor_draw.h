// How one of a row's neighbors is drawn; the same code on CPU and CUDA.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace deepclust {

// Draws a position with probability in proportion to its weight: the first at which the sum of the weights so far
// exceeds the share `uniform` of their sum. -1 where all weights are 0.
DEEPCLUST_HOST_DEVICE inline int draw_position(const double* weights /* (count,) */, int count, double uniform) {
  double total = 0;
  for (int j = 0; j < count; ++j) total += weights[j];
  const double share = uniform * total;
  double sum = 0;
  int drawn = -1;  // at the end the last one that has a weight: the product may have been rounded up to the sum
  for (int j = 0; j < count && !(sum > share); ++j) {
    sum += weights[j];
    if (weights[j] > 0) drawn = j;
  }
  return drawn;
}

}  // namespace deepclust

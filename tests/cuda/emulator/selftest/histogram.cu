// A histogram in shared memory, one atomic per group of lanes with the same bin. See tile.cu for the conventions.
#include "../../conformance/cases.h"

namespace {

using conformance::DeviceBuffer;

enum class Bug {
  kNone,
  kPastStaticArray,
  kReadPastStaticArray,
  kNeverCleared,
  kPlainCounter,
  kPlainGlobalCounter,
  kDivergedLanesNamed
};

constexpr int kBins = 8, kThreads = 64;

template <Bug kBug>
__global__ void histogram_kernel(int* counts, const int* values, int count) {
  DEEPCLUST_SHARED(int, bins, [kBins]);
  const int thread = threadIdx.x, lane = thread % 32, i = blockIdx.x * kThreads + thread;
  if (kBug != Bug::kNeverCleared && thread < kBins + (kBug == Bug::kPastStaticArray)) {
    // BUG: histogram_past_static_array
    bins[thread] = 0;
  }
  __syncthreads();
  const unsigned inside = __ballot_sync(0xffffffffu, i < count);
  if (i < count) {
    const int bin = values[i] % kBins;
    // BUG: histogram_diverged_lanes_named
    const unsigned same = __match_any_sync(kBug == Bug::kDivergedLanesNamed ? 0xffffffffu : inside, bin);
    if (lane == __ffs(static_cast<int>(same)) - 1) {
      if (kBug == Bug::kPlainCounter) {
        // BUG: histogram_plain_counter
        bins[bin] += __popc(same);
      } else {
        // BUG: histogram_never_cleared
        atomicAdd(&bins[bin], __popc(same));
      }
    }
  }
  __syncthreads();
  if (thread < kBins) {
    const int* bin = bins + thread + (kBug == Bug::kReadPastStaticArray);
    // BUG: histogram_read_past_static_array
    const int total = *bin;
    if (kBug == Bug::kPlainGlobalCounter) {
      // BUG: histogram_plain_global_counter
      counts[thread] += total;
    } else {
      atomicAdd(&counts[thread], total);
    }
  }
}

template <Bug kBug>
void run() {
  constexpr int kCount = 150;  // no multiple of the block
  std::vector<int> values, expected(kBins, 0);
  for (int i = 0; i < kCount; ++i) {
    values.push_back(i * i);
    ++expected[i * i % kBins];
  }
  const DeviceBuffer<int> device_values(values, "values"), counts(std::vector<int>(kBins, 0), "counts");
  conformance::require_success(deepclust::device::launch(histogram_kernel<kBug>, (kCount + kThreads - 1) / kThreads,
                                                         kThreads, 0, nullptr, counts.data(), device_values.data(),
                                                         kCount));
  conformance::expect_equal(counts.to_host(), expected);
}

DEVICE_CASE(histogram) { run<Bug::kNone>(); }
DEVICE_CASE(histogram_past_static_array) { run<Bug::kPastStaticArray>(); }
DEVICE_CASE(histogram_read_past_static_array) { run<Bug::kReadPastStaticArray>(); }
DEVICE_CASE(histogram_never_cleared) { run<Bug::kNeverCleared>(); }
DEVICE_CASE(histogram_plain_counter) { run<Bug::kPlainCounter>(); }
DEVICE_CASE(histogram_plain_global_counter) { run<Bug::kPlainGlobalCounter>(); }
DEVICE_CASE(histogram_diverged_lanes_named) { run<Bug::kDivergedLanesNamed>(); }

}  // namespace

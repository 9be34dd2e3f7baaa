// A warp is one walker: it weighs the candidates of its row, draws, and writes its sample, four elements a lane at a
// time with the four normal numbers of one counter. To normalize, the noise is computed once more instead of kept.
// Cosines of half precision are computed again in float64, from the rows: rounded, they would change the probabilities.
//
// Backward, a warp looks at one place of the walkers sorted by target. At the first of a target it adds up the
// gradients of all of them, in order, so a hub takes longer but gives the same sum every time; atomics would not.
#include "neighbors/cuda/diffused_neighbor_gather.cuh"

#include <cmath>
#include <limits>
#include <type_traits>

#include "core/constants.h"
#include "core/cuda/block.cuh"
#include "core/cuda/element_type.cuh"
#include "core/cuda/numeric.cuh"
#include "core/host_device.h"
#include "neighbors/neighbor_draw.h"
#include "neighbors/philox.h"

namespace deepclust {
namespace {

constexpr int kGatherThreads = 128, kGatherWarps = kGatherThreads / 32;
constexpr int kGatherColumns = 4;  // of a row that a lane has at a time

template <class Element>
struct GatherArguments {
  using T = Widened<Element>;
  const Element* rows;
  const Element* bank;
  const Element* cosines;
  const int64_t* candidates;
  const int64_t* avoided;
  const int64_t* previous;
  Element* samples;
  int64_t* indices;
  T* inverse_norm;
  int64_t walkers, depth, num_samples, walkers_of_row, width, limit, step;
  double temperature, noise_std;
  uint64_t seed;
};

template <class Element>
struct GatherGradientArguments {
  using T = Widened<Element>;
  const Element* grad_samples;
  const Element* samples;
  const T* inverse_norm;
  const int64_t* sorted_indices;
  const int64_t* order;
  T* along;
  Element* grad_query;
  Element* grad_bank;
  int64_t walkers, depth, num_samples;

  __device__ __forceinline__ int64_t walker_at(int64_t place) const { return order != nullptr ? order[place] : place; }

  // Where the gradient of the walker at a place goes; null if it is not wanted.
  __device__ __forceinline__ Element* target_at(int64_t place) const {
    const int64_t row = sorted_indices != nullptr ? sorted_indices[place] : -1;
    if (row >= 0) return grad_bank != nullptr ? grad_bank + row * depth : nullptr;
    return grad_query != nullptr ? grad_query + walker_at(place) / num_samples * depth : nullptr;
  }
};

__device__ __forceinline__ int64_t warp_of_grid() { return int64_t{blockIdx.x} * kGatherWarps + threadIdx.x / 32; }

// The cosine of two rows, by a warp, the same in all lanes. float64 neither overflows nor rounds noticeably here.
template <class Element>
__device__ double cosine_of(const Element* x /* (depth,) */, const Element* y /* (depth,) */, int64_t depth) {
  double sums[3] = {};
  for (int64_t k = threadIdx.x % 32; k < depth; k += 32) {
    const double a = widen(x[k]), b = widen(y[k]);
    sums[0] += a * b;
    sums[1] += a * a;
    sums[2] += b * b;
  }
  for (double& sum : sums) sum = warp_sum(sum);
  return sums[0] / (larger(sqrt(sums[1]), kMinNorm) * larger(sqrt(sums[2]), kMinNorm));
}

// Draws for one walker, by a warp: the index of the row in the bank, or -1. `weights` is the warp's own.
template <class Element>
__device__ int64_t draw_candidate(const GatherArguments<Element>& in, int64_t walker, double* weights /* (width,) */) {
  const int lane = threadIdx.x % 32, width = static_cast<int>(in.width);
  const int64_t row = walker / in.walkers_of_row, query = walker / in.num_samples;
  const Element* cosines = in.cosines + row * in.width;
  const int64_t* candidates = in.candidates + row * in.width;
  const int64_t avoided = in.avoided != nullptr ? in.avoided[query] : -1;
  bool found = false;  // the avoided one, among the others
  for (int j = lane; j < in.limit; j += 32) found = found || candidates[j] == avoided;
  const int counted = static_cast<int>(in.limit) + (__any_sync(kWholeWarp, found) ? 1 : 0);
  const auto counts = [&](int j) { return j < counted && candidates[j] >= 0 && candidates[j] != avoided; };
  if constexpr (sizeof(Element) == 2) {
    for (int j = 0; j < width; ++j) {
      if (!counts(j)) continue;
      const double cosine = cosine_of(in.rows + row * in.depth, in.bank + candidates[j] * in.depth, in.depth);
      if (lane == j % 32) weights[j] = cosine;
    }
  } else {
    for (int j = lane; j < width; j += 32) weights[j] = cosines[j];
  }
  double largest = -Limits<double>::kInfinity;
  for (int j = lane; j < width; j += 32) {
    if (counts(j)) largest = larger(largest, weights[j]);
  }
  largest = warp_max(largest);
  for (int j = lane; j < width; j += 32) {
    weights[j] = counts(j) ? exp((weights[j] - largest) / in.temperature) : 0.0;
  }
  __syncwarp();
  const int position = draw_position(weights, width, philox_uniform(in.seed, query, walker % in.num_samples, in.step));
  return position < 0 ? -1 : candidates[position];
}

// -2 log(u) for u = (word + 1/2) / 2^32, also where u is next to 1.
template <class T>
__device__ __forceinline__ T minus_two_log(uint32_t word) {
  const T fraction = (static_cast<T>(word < 0x80000000u ? word : ~word) + T(0.5)) * T(1.0 / 4294967296.0);
  return T(-2) * (word < 0x80000000u ? log(fraction) : log1p(-fraction));
}

// Two normal numbers of two words; see philox.h.
template <class T>
__device__ __forceinline__ void normal_pair(uint64_t first, uint64_t second, T& x, T& y) {
  const T radius = sqrt(minus_two_log<T>(static_cast<uint32_t>(first)));
  const auto turned = static_cast<uint32_t>(second + kHalfQuarter);
  const int32_t rest = static_cast<int32_t>(turned & 0x3FFFFFFFu) - static_cast<int32_t>(kHalfQuarter);
  T sine, cosine;
  sine_and_cosine<T>(static_cast<T>(rest) * static_cast<T>(kRestToRadians), sine, cosine);
  const unsigned quarter = turned >> 30;
  const T along = quarter & 1 ? sine : cosine, across = quarter & 1 ? cosine : sine;
  x = radius * (quarter == 1 || quarter == 2 ? -along : along);
  y = radius * (quarter >= 2 ? -across : across);
}

// Calls visit(element, value) for the sample's elements of this lane, before they are normalized.
template <class Element, class Visit>
__device__ __forceinline__ void for_each_value(const GatherArguments<Element>& in, const Element* source,
                                               int64_t walker, const Visit& visit) {
  using T = Widened<Element>;
  const auto query = static_cast<uint64_t>(walker / in.num_samples);
  for (int64_t block = threadIdx.x % 32; 4 * block < in.depth; block += 32) {
    T noise[4] = {};
    if (in.noise_std > 0) {
      uint64_t words[4] = {static_cast<uint64_t>(block), static_cast<uint64_t>(walker % in.num_samples),
                           query & 0xFFFFFFFF, query >> 32 | kNoiseCounter};
      philox(words, in.seed);
      normal_pair(words[0], words[1], noise[0], noise[1]);
      normal_pair(words[2], words[3], noise[2], noise[3]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t k = 4 * block + e;
      if (k < in.depth) visit(k, widen(source[k]) + static_cast<T>(in.noise_std) * noise[e]);
    }
  }
}

template <class Element>
__global__ void __launch_bounds__(kGatherThreads, 4) gather_kernel(const GatherArguments<Element> in) {
  using T = Widened<Element>;
  DEEPCLUST_SHARED(double, weights, [kGatherWarps][kMaxDrawn]);
  const int lane = threadIdx.x % 32;
  const int64_t walker = warp_of_grid();
  if (walker >= in.walkers) return;
  const int64_t row = walker / in.walkers_of_row;
  const Element* source = in.rows + row * in.depth;
  int64_t index = in.previous != nullptr ? in.previous[walker] : -1;
  bool finite = true;
  if (in.width > 0) {
    const T first = widen(in.cosines[row * in.width]);
    finite = first == first;
    const int64_t drawn = finite ? draw_candidate(in, walker, weights[threadIdx.x / 32]) : -1;
    if (drawn >= 0) {
      index = drawn;
      source = in.bank + drawn * in.depth;
    }
  }
  if (lane == 0) in.indices[walker] = index;
  T scale = finite ? T(1) : Limits<T>::kNan;
  if (in.inverse_norm != nullptr) {
    double largest = 1, squares = 0;  // squares of float64 may leave their range, so they are taken relative
    if constexpr (std::is_same<T, double>::value) {
      largest = 0;
      for_each_value(in, source, walker, [&](int64_t, T value) { largest = larger(largest, fabs(value)); });
      largest = warp_max(largest);
      if (!(largest > 0)) largest = 1;
    }
    for_each_value(in, source, walker, [&](int64_t, T value) { squares += (value / largest) * (value / largest); });
    const double norm = largest * sqrt(warp_sum(squares));
    scale = finite && norm <= Limits<double>::kMax ? static_cast<T>(1 / larger(norm, kMinNorm)) : Limits<T>::kNan;
    if (lane == 0) in.inverse_norm[walker] = scale;
  }
  Element* sample = in.samples + walker * in.depth;
  for_each_value(in, source, walker, [&](int64_t k, T value) { sample[k] = narrow<Element>(value * scale); });
}

// y.g of every normalized sample y and its gradient g.
template <class Element>
__global__ void __launch_bounds__(kGatherThreads, 4) gather_along_kernel(const GatherGradientArguments<Element> in) {
  using T = Widened<Element>;
  const int64_t walker = warp_of_grid();
  if (walker >= in.walkers) return;
  T sum = 0;
  const Element* sample = in.samples + walker * in.depth;
  const Element* gradient = in.grad_samples + walker * in.depth;
  for (int64_t k = threadIdx.x % 32; k < in.depth; k += 32) sum += widen(sample[k]) * widen(gradient[k]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) in.along[walker] = sum;
}

template <class Element>
__global__ void __launch_bounds__(kGatherThreads, 4) gather_gradient_kernel(const GatherGradientArguments<Element> in) {
  using T = Widened<Element>;
  const int64_t first = warp_of_grid();
  if (first >= in.walkers) return;
  Element* target = in.target_at(first);
  if (target == nullptr || (first > 0 && in.target_at(first - 1) == target)) return;
  for (int64_t begin = threadIdx.x % 32; begin - threadIdx.x % 32 < in.depth; begin += 32 * kGatherColumns) {
    T sum[kGatherColumns] = {};
    const auto for_each_column = [&](auto&& visit) {
#pragma unroll
      for (int e = 0; e < kGatherColumns; ++e) {
        if (begin + 32 * e < in.depth) visit(e, begin + 32 * e);
      }
    };
    for (int64_t place = first; place < in.walkers && in.target_at(place) == target; ++place) {
      const int64_t walker = in.walker_at(place);
      const Element* gradient = in.grad_samples + walker * in.depth;
      if (in.inverse_norm == nullptr) {
        for_each_column([&](int e, int64_t k) { sum[e] += widen(gradient[k]); });
      } else {
        const Element* sample = in.samples + walker * in.depth;
        const T inverse_norm = in.inverse_norm[walker], along = in.along[walker];
        const T scale = inverse_norm >= T(1 / kMinNorm) ? T(0) : inverse_norm;
        for_each_column([&](int e, int64_t k) { sum[e] += (widen(gradient[k]) - widen(sample[k]) * along) * scale; });
      }
    }
    for_each_column([&](int e, int64_t k) { target[k] = narrow<Element>(sum[e]); });
  }
}

// A warp for each of `count`; more than a grid takes are refused, not launched in part.
template <class... P, class... A>
cudaError_t launch_warps(void (*kernel)(P...), int64_t count, cudaStream_t stream, const A&... arguments) {
  const int64_t blocks = divide_up(count, kGatherWarps);
  if (blocks > std::numeric_limits<int32_t>::max()) return cudaErrorInvalidValue;
  return device::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kGatherThreads), 0, stream, arguments...);
}

}  // namespace

cudaError_t launch_diffused_neighbor_gather(const GatherInputs& inputs, void* samples, int64_t* indices,
                                            void* inverse_norm, cudaStream_t stream) {
  if (inputs.width > kMaxDrawn) return cudaErrorInvalidValue;
  return for_element_type(inputs.type, [&](auto element) {
    using Element = decltype(element);
    GatherArguments<Element> in{};
    in.rows = static_cast<const Element*>(inputs.rows);
    in.bank = static_cast<const Element*>(inputs.bank);
    in.cosines = static_cast<const Element*>(inputs.cosines);
    in.candidates = inputs.candidates;
    in.avoided = inputs.avoided;
    in.previous = inputs.previous;
    in.samples = static_cast<Element*>(samples);
    in.indices = indices;
    in.inverse_norm = static_cast<Widened<Element>*>(inverse_norm);
    in.walkers = inputs.walkers;
    in.depth = inputs.depth;
    in.num_samples = inputs.num_samples;
    in.walkers_of_row = inputs.walkers_of_row;
    in.width = inputs.width;
    in.limit = inputs.limit;
    in.step = inputs.step;
    in.temperature = inputs.temperature;
    in.noise_std = inputs.noise_std;
    in.seed = static_cast<uint64_t>(inputs.seed);
    return launch_warps(gather_kernel<Element>, in.walkers, stream, in);
  });
}

cudaError_t launch_diffused_neighbor_gather_backward(const GatherGradientInputs& inputs, void* along, void* grad_query,
                                                     void* grad_bank, cudaStream_t stream) {
  return for_element_type(inputs.type, [&](auto element) {
    using Element = decltype(element);
    using T = Widened<Element>;
    GatherGradientArguments<Element> in{};
    in.grad_samples = static_cast<const Element*>(inputs.grad_samples);
    in.samples = static_cast<const Element*>(inputs.samples);
    in.inverse_norm = static_cast<const T*>(inputs.inverse_norm);
    in.sorted_indices = inputs.sorted_indices;
    in.order = inputs.order;
    in.along = static_cast<T*>(along);
    in.grad_query = static_cast<Element*>(grad_query);
    in.grad_bank = static_cast<Element*>(grad_bank);
    in.walkers = inputs.walkers;
    in.depth = inputs.depth;
    in.num_samples = inputs.num_samples;
    if (in.inverse_norm != nullptr) {
      const cudaError_t error = launch_warps(gather_along_kernel<Element>, in.walkers, stream, in);
      if (error != cudaSuccess) return error;
    }
    return launch_warps(gather_gradient_kernel<Element>, in.walkers, stream, in);
  });
}

}  // namespace deepclust

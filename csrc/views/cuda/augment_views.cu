// A thread block makes one view after the other, each by passes over its pixels. A pass makes every pixel of the image,
// of the view so far in the same place, or of several of its pixels (a gather); then it applies the steps that follow
// as long as a pixel takes them alone; then it measures what the next step has to know of the whole view; and it writes
// the pixel to the workspace or, after the last step, to the result. A view without gathers and measured steps is one
// pass and touches no workspace.
//
// A warp takes whole rows. Images of three channels have all three of a pixel in one thread; of other images a pass
// takes one channel after the other. Sums are in an order that depends on the size alone.
#include "views/cuda/augment_views.cuh"

#include <algorithm>

#include "core/cuda/block.cuh"
#include "core/cuda/numeric.cuh"
#include "views/cuda/augment_gathers.cuh"
#include "views/cuda/augment_passes.cuh"
#include "views/cuda/augment_points.cuh"

namespace deepclust {
namespace {

constexpr int kViewThreads = 512, kViewWarps = kViewThreads / 32;
constexpr int kBlocksOfMultiprocessor = 2;
constexpr int64_t kLargestSide = int64_t{1} << 30;

// By the whole block.
__device__ void prepare_blur(const AugmentArguments& arguments, const Pass& pass, Gaussian* gaussian) {
  float* weights = arguments.weights + blockIdx.x * arguments.num_weights;
  const int64_t side = pass.gather == Gather::kBlurColumns ? arguments.in.height : arguments.in.width;
  const int radius = static_cast<int>(min(arguments.in.blur_kernel / 2, side - 1));
  double sum[1] = {};
  for (int i = threadIdx.x; i <= radius; i += kViewThreads) {
    const float away = static_cast<float>(i) / pass.strength;
    weights[i] = pass.strength > 0 ? expf(-0.5f * away * away) : i == 0 ? 1.0f : 0.0f;
    sum[0] += (i == 0 ? 1 : 2) * static_cast<double>(weights[i]);
  }
  sum_over_block<kViewWarps>(sum);
  if (threadIdx.x == 0) *gaussian = {weights, radius, static_cast<float>(sum[0])};
  __syncthreads();
}

// What equalize makes of the levels of one channel, by a warp.
__device__ void spread_levels(const int* counts /* (kLevels,) */, int pixels, uint8_t* table /* (kLevels,) */) {
  constexpr int kOwn = kLevels / 32;
  const int lane = threadIdx.x % 32;
  int own = 0, last = 0;
  for (int i = lane * kOwn; i < (lane + 1) * kOwn; ++i) {
    own += counts[i];
    if (counts[i] > 0) last = i;
  }
  last = warp_max(last);
  int before = own;
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(kWholeWarp, before, offset);
    if (lane >= offset) before += other;
  }
  before -= own;
  const int step = (pixels - counts[last]) / (kLevels - 1);
  for (int i = lane * kOwn; i < (lane + 1) * kOwn; ++i) {
    table[i] = static_cast<uint8_t>(step == 0 ? i : min((before + step / 2) / step, kLevels - 1));
    before += counts[i];
  }
}

// The smallest and the largest of each channel over the block.
template <int kChannels>
__device__ void find_range(float (&low)[kChannels], float (&high)[kChannels], float* lows, float* highs) {
  DEEPCLUST_SHARED(float, partial, [kViewWarps][2][kChannels]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    for (int offset = 16; offset > 0; offset /= 2) {
      low[c] = smaller_or_nan(low[c], __shfl_xor_sync(kWholeWarp, low[c], offset));
      high[c] = larger_or_nan(high[c], __shfl_xor_sync(kWholeWarp, high[c], offset));
    }
    if (lane == 0) {
      partial[warp][0][c] = low[c];
      partial[warp][1][c] = high[c];
    }
  }
  __syncthreads();
  const int c = threadIdx.x;
  if (c < kChannels) {
    float lowest = partial[0][0][c], highest = partial[0][1][c];
    for (int i = 1; i < kViewWarps; ++i) {
      lowest = smaller_or_nan(lowest, partial[i][0][c]);
      highest = larger_or_nan(highest, partial[i][1][c]);
    }
    lows[c] = lowest;
    highs[c] = highest;
  }
  __syncthreads();
}

template <int kChannels>
__device__ __forceinline__ void gather(const AugmentArguments& arguments, const Scratch& scratch, int y, int x,
                                       int64_t channel, float (&v)[kChannels]) {
  const Pass& pass = *scratch.pass;
  const Crop& crop = *scratch.crop;
  const AugmentInputs& in = arguments.in;
  const int height = static_cast<int>(in.height), width = static_cast<int>(in.width);
  const Planes view{pass.source, height, width};
  switch (pass.gather) {
    case Gather::kImage:
      switch (in.type) {
        case PixelType::kU8:
          return resize<uint8_t>(crop, height, width, y, x, channel, v);
        case PixelType::kU16:
          return resize<uint16_t>(crop, height, width, y, x, channel, v);
        case PixelType::kF16:
          return resize<__half>(crop, height, width, y, x, channel, v);
        case PixelType::kBf16:
          return resize<__nv_bfloat16>(crop, height, width, y, x, channel, v);
        case PixelType::kF32:
          return resize<float>(crop, height, width, y, x, channel, v);
        case PixelType::kF64:
          return resize<double>(crop, height, width, y, x, channel, v);
      }
      return;
    case Gather::kSamePlace:
#pragma unroll
      for (int c = 0; c < kChannels; ++c) v[c] = view.channel(channel + c)[int64_t{y} * width + x];
      return;
    case Gather::kBlurColumns:
    case Gather::kBlurRows:
      return blur(view, *scratch.gaussian, pass.gather == Gather::kBlurColumns, y, x, channel, v);
    case Gather::kSharpness:
      return sharpen(view, pass.strength, y, x, channel, v);
    case Gather::kMoveBilinear:
      return move_bilinear(view, *scratch.move, y, x, channel, v);
    case Gather::kMoveNearest:
      return move_nearest(view, *scratch.move, y, x, channel, v);
  }
}

template <int kChannels>
__device__ __forceinline__ void write_pixel(const AugmentArguments& arguments, const Pass& pass, int64_t index, int y,
                                            int x, int64_t channel, const float (&v)[kChannels]) {
  const AugmentInputs& in = arguments.in;
  const AugmentViews& out = arguments.out;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int64_t place = channel + c;
    if (!pass.last) {
      pass.target[(place * in.height + y) * in.width + x] = v[c];
      continue;
    }
    const float value = in.normalize ? (v[c] - in.mean[place]) / in.std[place] : v[c];
    const int64_t offset = index * out.strides[0] + place * out.strides[1] + y * out.strides[2] + x * out.strides[3];
    if (out.type == ElementType::kF32) {
      static_cast<float*>(out.data)[offset] = value;
    } else if (out.type == ElementType::kF16) {
      static_cast<__half*>(out.data)[offset] = narrow<__half>(value);
    } else {
      static_cast<__nv_bfloat16*>(out.data)[offset] = narrow<__nv_bfloat16>(value);
    }
  }
}

// By the whole block; the next pass may begin when it returns.
template <int kChannels>
__device__ void run_pass(const AugmentArguments& arguments, const Scratch& scratch, int64_t index) {
  const Pass& pass = *scratch.pass;
  const Measure measure = pass.measure;  // the pass itself may be the next one after the last barrier
  const AugmentInputs& in = arguments.in;
  const int height = static_cast<int>(in.height), width = static_cast<int>(in.width);
  double sum[1] = {};
  const int64_t channels = kChannels == 3 ? 3 : in.channels;
  for (int64_t channel = 0; channel < channels; channel += kChannels) {
    // Step 1: counts of levels begin at 0.
    if (measure == Measure::kLevels) {
      for (int i = threadIdx.x; i < kChannels * kLevels; i += kViewThreads) scratch.counts[i] = 0;
      __syncthreads();
    }
    float gray = 0, low[kChannels], high[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      low[c] = Limits<float>::kInfinity;
      high[c] = -Limits<float>::kInfinity;
    }
    // Step 2: every pixel is gathered, changed by the steps of this pass, measured for the next one, and written.
    for (int y = threadIdx.x / 32; y < height; y += kViewWarps) {
      for (int x = threadIdx.x % 32; x < width; x += 32) {
        float v[kChannels] = {};
        gather(arguments, scratch, y, x, channel, v);
        for (int i = 0; i < pass.num_steps; ++i) apply_point(scratch.steps[i], scratch.measured, channel, v);
        if (measure == Measure::kMean) gray += gray_of(v);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if (measure == Measure::kRange) {
            low[c] = smaller_or_nan(low[c], v[c]);
            high[c] = larger_or_nan(high[c], v[c]);
          } else if (measure == Measure::kLevels) {
            atomicAdd(&scratch.counts[c * kLevels + level_of(v[c])], 1);
          }
        }
        write_pixel(arguments, pass, index, y, x, channel, v);
      }
    }
    sum[0] += gray;
    __syncthreads();
    // Step 3: what the threads measured becomes a range or a table of levels for each channel; below, a mean for all.
    if (measure == Measure::kRange) {
      find_range(low, high, scratch.measured.low + channel, scratch.measured.high + channel);
    } else if (measure == Measure::kLevels) {
      const int c = threadIdx.x / 32;
      if (c < kChannels) {
        spread_levels(scratch.counts + c * kLevels, height * width, scratch.measured.table + (channel + c) * kLevels);
      }
      __syncthreads();
    }
  }
  if (measure == Measure::kMean) {
    sum_over_block<kViewWarps>(sum);
    const int64_t values = channels / kChannels * in.height * in.width;
    if (threadIdx.x == 0) *scratch.measured.mean = static_cast<float>(sum[0] / static_cast<double>(values));
    __syncthreads();
  }
}

template <int kChannels>
__device__ void make_view(const AugmentArguments& arguments, const Scratch& scratch, int64_t index) {
  bool last = false;
  for (bool first = true; !last; first = false) {
    if (threadIdx.x == 0) plan_pass(arguments, index, first, scratch);
    __syncthreads();
    const Pass& pass = *scratch.pass;
    last = pass.last;
    if (pass.gather == Gather::kBlurColumns || pass.gather == Gather::kBlurRows) {
      prepare_blur(arguments, pass, scratch.gaussian);
    }
    run_pass<kChannels>(arguments, scratch, index);
  }
}

template <int kChannels>
__global__ void __launch_bounds__(kViewThreads, kBlocksOfMultiprocessor)
    augment_views_kernel(const AugmentArguments arguments) {
  constexpr int kMost = kChannels == 3 ? 3 : kMaxAugmentChannels;
  DEEPCLUST_SHARED(Pass, pass, [1]);
  DEEPCLUST_SHARED(Crop, crop, [1]);
  DEEPCLUST_SHARED(Move, move, [1]);
  DEEPCLUST_SHARED(Gaussian, gaussian, [1]);
  DEEPCLUST_SHARED(PointStep, steps, [kMostSteps]);
  DEEPCLUST_SHARED(int, counts, [kChannels][kLevels]);
  DEEPCLUST_SHARED(float, mean, [1]);
  DEEPCLUST_SHARED(float, low, [kMost]);
  DEEPCLUST_SHARED(float, high, [kMost]);
  DEEPCLUST_SHARED(uint8_t, table, [kMost][kLevels]);
  const Scratch scratch{pass, crop, move, gaussian, steps, counts[0], {mean, low, high, table[0]}};
  for (int64_t index = blockIdx.x; index < arguments.in.count; index += gridDim.x) {
    make_view<kChannels>(arguments, scratch, index);
  }
}

}  // namespace

AugmentPlan plan_augment_views(const AugmentInputs& inputs, int multiprocessors) {
  const int64_t resident = int64_t{kBlocksOfMultiprocessor} * multiprocessors;
  const int64_t reach = std::min(inputs.blur_kernel / 2, std::max(inputs.height, inputs.width) - 1);
  return {std::min(inputs.count, resident), reach + 1};
}

AugmentBytes augment_views_bytes(const AugmentInputs& inputs, const AugmentPlan& plan) {
  if (inputs.matrices == nullptr && inputs.num_steps == 0) return {};
  constexpr int64_t kFloat = sizeof(float);
  const int64_t views = plan.blocks * inputs.channels * inputs.height * inputs.width * kFloat;
  return {{views, views, plan.blocks * plan.weights * kFloat}};
}

cudaError_t launch_augment_views(const AugmentInputs& inputs, const AugmentPlan& plan,
                                 const AugmentWorkspace& workspace, const AugmentViews& views, cudaStream_t stream) {
  if (std::max(inputs.height, inputs.width) > kLargestSide) return cudaErrorInvalidValue;
  AugmentArguments arguments{};
  arguments.in = inputs;
  arguments.out = views;
  arguments.front = static_cast<float*>(workspace.field[kAugmentFront]);
  arguments.back = static_cast<float*>(workspace.field[kAugmentBack]);
  arguments.weights = static_cast<float*>(workspace.field[kAugmentWeights]);
  arguments.num_weights = plan.weights;
  const auto kernel = inputs.channels == 3 ? augment_views_kernel<3> : augment_views_kernel<1>;
  return device::launch(kernel, dim3(static_cast<unsigned>(plan.blocks)), dim3(kViewThreads), 0, stream, arguments);
}

}  // namespace deepclust

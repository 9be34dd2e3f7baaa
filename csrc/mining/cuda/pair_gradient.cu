// The gradient of a distance |x_i - x_j| goes to both rows of the pair. A thread block owns a few rows. It goes through
// the pairs of all anchors, lists in order those that end in one of its rows, and adds them up. So sums have one order,
// and no atomics are needed; a row that many anchors share takes longer. Each block reads all 2 N indices: the N / rows
// blocks read 2 N^2 / rows in all, far less than the work of the forward pass.
#include "mining/cuda/pair_gradient.cuh"

#include <type_traits>

#include "core/constants.h"
#include "core/cuda/element_type.cuh"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/host_device.h"

namespace deepclust {
namespace {

// Four warps, each with two or eight of the block's rows (see rows_per_block).
constexpr int kThreads = 128, kWarps = kThreads / 32;
// Pairs that a warp reads in a step: four indices for each lane, whose loads wait for memory together.
constexpr int kPairsPerWarp = 128;
constexpr int kPairsPerStep = kWarps * kPairsPerWarp;
// Pairs in the list, 8 KB of shared memory: it holds two steps even if all of their pairs end in the block. Mostly few
// do, so the sums of a row are read and written only once for many steps.
constexpr int kListed = 1024;
// Columns of a row that a lane adds up at a time, 128 for the warp: with a usual D one or two passes over the list.
constexpr int kColumnsPerLane = 4;

enum { kTeacher, kStudent };

template <class Element>
struct PairGradientArguments {
  using T = Widened<Element>;
  const Element* input[2];    // (N, D) teacher, student
  const int64_t* index[2];    // (N,)
  const T* inverse_norm;      // (2, N)
  const T* inverse_distance;  // (2, N) or (4, N)
  const Element* weight[4];   // (N,)
  int64_t weight_stride[4];
  Element* gradient[2];  // (N, D) or null
  T* sum[2];             // (N, D)
  int64_t count, depth;
  T factor;
  int rows_per_block;
  bool normalize;

  __device__ __forceinline__ bool has_teacher_pairs() const { return weight[2] != nullptr; }

  __device__ __forceinline__ T slope(int64_t distance, int64_t i) const {
    return widen(weight[distance][i * weight_stride[distance]]) * factor * inverse_distance[distance * count + i];
  }

  __device__ __forceinline__ T value(int which, int64_t row, int64_t k) const {
    return widen(input[which][row * depth + k]) * inverse_norm[which * count + row];
  }
};

struct ListedPair {
  uint32_t pair;  // m * N + i: pair m (0 positive, 1 negative) of anchor i
  int row;        // the row of the block in which it ends
};

// Adds the gradients of the listed pairs that end in row `row` of the teacher or the student to the row's sums. With
// the last of them, a teacher's row also gets those of the pairs in which it is the anchor. By a warp; a lane reads and
// writes the same columns every time.
template <class Element>
__device__ void add_pairs(const PairGradientArguments<Element>& in, int which, int64_t row, int local_row,
                          const ListedPair* list, int listed, bool first, bool last) {
  using T = typename PairGradientArguments<Element>::T;
  const int lane = threadIdx.x % 32;
  for (int64_t begin = lane; begin - lane < in.depth; begin += 32 * kColumnsPerLane) {
    T sum[kColumnsPerLane] = {}, own[kColumnsPerLane] = {};
    const auto for_each_column = [&](auto&& visit) {
#pragma unroll
      for (int e = 0; e < kColumnsPerLane; ++e) {
        if (begin + 32 * e < in.depth) visit(e, begin + 32 * e);
      }
    };
    const auto add = [&](T slope, int other, int64_t other_row) {
      for_each_column([&](int e, int64_t k) { sum[e] += slope * (own[e] - in.value(other, other_row, k)); });
    };
    for_each_column([&](int e, int64_t k) {
      if (!first) sum[e] = in.sum[which][row * in.depth + k];
      own[e] = in.value(which, row, k);
    });
    for (int base = 0; base < listed; base += 32) {
      const bool mine = base + lane < listed && list[base + lane].row == local_row;
      for (unsigned left = __ballot_sync(kWholeWarp, mine); left != 0; left &= left - 1) {
        const int64_t pair = list[base + __ffs(left) - 1].pair;
        const int64_t distance = pair >= in.count, i = pair - distance * in.count;
        add(in.slope(which == kStudent ? distance : 2 + distance, i), kTeacher, i);
      }
    }
    for (int64_t distance = 0; distance < 2 && which == kTeacher && last; ++distance) {
      const int64_t j = in.index[distance][row];
      if (j < 0) continue;
      add(in.slope(distance, row), kStudent, j);
      if (in.has_teacher_pairs()) add(in.slope(2 + distance, row), kTeacher, j);
    }
    for_each_column([&](int e, int64_t k) { in.sum[which][row * in.depth + k] = sum[e]; });
  }
}

// Carries the sum through the normalization of a row: (g - n (n.g)) / |x|, or 0 below kMinNorm.
template <class Element>
__device__ void finish_row(const PairGradientArguments<Element>& in, int which, int64_t row) {
  using T = typename PairGradientArguments<Element>::T;
  const T inverse_norm = in.inverse_norm[which * in.count + row];
  const T factor = inverse_norm < T(1 / kMinNorm) ? inverse_norm : T(0);
  T along = 0;
  if (in.normalize) {
    for (int64_t k = threadIdx.x % 32; k < in.depth; k += 32) {
      along += in.value(which, row, k) * in.sum[which][row * in.depth + k];
    }
    for (int offset = 16; offset > 0; offset /= 2) along += __shfl_xor_sync(kWholeWarp, along, offset);
  }
  for (int64_t k = threadIdx.x % 32; k < in.depth; k += 32) {
    const T sum = in.sum[which][row * in.depth + k];
    const T gradient = in.normalize ? (sum - in.value(which, row, k) * along) * factor : sum;
    in.gradient[which][row * in.depth + k] = narrow<Element>(gradient);
  }
}

// A step reads kPairsPerStep pairs and lists those that end in a row of the block. When the list could overflow in the
// next step, and after the last step, its pairs are added to the sums.
template <class Element>
__global__ void __launch_bounds__(kThreads, 4) pair_gradient_kernel(const PairGradientArguments<Element> in) {
  using T = typename PairGradientArguments<Element>::T;
  DEEPCLUST_SHARED(ListedPair, list, [kListed]);
  DEEPCLUST_SHARED(int, found, [kWarps]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = int64_t{blockIdx.x} * in.rows_per_block;
  const int rows = static_cast<int>(smaller<int64_t>(in.rows_per_block, in.count - first_row));
  // The search marks inputs that are not finite by the index -1. Their gradients are NaN.
  if (in.index[0][0] < 0) {
    for (int64_t k = threadIdx.x; k < rows * in.depth; k += kThreads) {
      for (int which = 0; which < 2; ++which) {
        if (in.gradient[which] == nullptr) continue;
        in.gradient[which][first_row * in.depth + k] = narrow<Element>(Limits<T>::kNan);
      }
    }
    return;
  }
  // Pair (m, i) ends in row j = index[m][i]: in row j of the student, because of |t_i - s_j|, and if |t_i - t_j| has a
  // weight, also in row j of the teacher.
  const bool want[2] = {in.gradient[kTeacher] != nullptr, in.gradient[kStudent] != nullptr};
  const bool receives[2] = {want[kTeacher] && in.has_teacher_pairs(), want[kStudent]};
  const int64_t pairs = receives[kTeacher] || receives[kStudent] ? 2 * in.count : 0;
  int listed = 0;
  bool first = true;
  int64_t begin = 0;
  do {  // at least once: a row in which no pair ends still has its own pairs
    // 1. Which pairs of this step end in a row of the block; each warp counts its own.
    int row[kPairsPerWarp / 32];
    unsigned hits[kPairsPerWarp / 32];
    int count = 0;
#pragma unroll
    for (int part = 0; part < kPairsPerWarp / 32; ++part) {
      const int64_t pair = begin + warp * kPairsPerWarp + part * 32 + lane;
      const int64_t* index = pair < in.count ? in.index[0] + pair : in.index[1] + (pair - in.count);
      const int64_t target = pair < pairs ? *index - first_row : -1;
      const bool hit = target >= 0 && target < rows;
      row[part] = hit ? static_cast<int>(target) : -1;
      hits[part] = __ballot_sync(kWholeWarp, hit);
      count += __popc(hits[part]);
    }
    // 2. Where the pairs of a warp begin in the list: after those of the warps before it.
    if (lane == 0) found[warp] = count;
    __syncthreads();
    int position = listed;
    for (int other = 0; other < kWarps; ++other) {
      if (other < warp) position += found[other];
      listed += found[other];
    }
    // 3. They are listed, in the order of (m, i).
#pragma unroll
    for (int part = 0; part < kPairsPerWarp / 32; ++part) {
      const int64_t pair = begin + warp * kPairsPerWarp + part * 32 + lane;
      if (row[part] >= 0) {
        list[position + __popc(hits[part] & ((1u << lane) - 1))] = {static_cast<uint32_t>(pair), row[part]};
      }
      position += __popc(hits[part]);
    }
    __syncthreads();
    // 4. If the next step could overflow the list, and at the end: sums of slope (row - other row) over the list. At
    // the end, a teacher's row also gets its own pairs, and sums go through the normalization.
    begin += kPairsPerStep;
    const bool last = begin >= pairs;
    if (last || listed > kListed - kPairsPerStep) {
      for (int r = warp; r < rows; r += kWarps) {
        for (int which = 0; which < 2; ++which) {
          if (receives[which] || (want[which] && last)) {
            add_pairs(in, which, first_row + r, r, list, receives[which] ? listed : 0, first || !receives[which], last);
          }
          if (want[which] && last) finish_row(in, which, first_row + r);
        }
      }
      listed = 0;  // the next pairs are listed after a barrier, when all warps have added these
      first = false;
    }
  } while (begin < pairs);
}

template <class Element>
cudaError_t launch_type(const PairGradientInputs& inputs, void* grad_teacher, void* grad_student, void* teacher_sums,
                        void* student_sums, cudaStream_t stream) {
  using A = PairGradientArguments<Element>;
  using T = typename A::T;
  A in{};
  in.input[kTeacher] = static_cast<const Element*>(inputs.teacher);
  in.input[kStudent] = static_cast<const Element*>(inputs.student);
  for (int m = 0; m < 2; ++m) in.index[m] = inputs.index[m];
  in.inverse_norm = static_cast<const T*>(inputs.inverse_norm);
  in.inverse_distance = static_cast<const T*>(inputs.inverse_distance);
  for (int m = 0; m < 4; ++m) {
    in.weight[m] = static_cast<const Element*>(inputs.weight[m]);
    in.weight_stride[m] = inputs.weight_stride[m];
  }
  in.gradient[kTeacher] = static_cast<Element*>(grad_teacher);
  in.gradient[kStudent] = static_cast<Element*>(grad_student);
  in.sum[kTeacher] = static_cast<T*>(teacher_sums);
  in.sum[kStudent] = static_cast<T*>(student_sums);
  in.count = inputs.count;
  in.depth = inputs.depth;
  in.factor = static_cast<T>(inputs.factor);
  in.rows_per_block = inputs.count <= 8192 ? 8 : 32;  // few rows: many blocks; many rows: few passes over the pairs
  in.normalize = inputs.normalize;
  const int64_t blocks = divide_up(in.count, in.rows_per_block);
  return device::launch(pair_gradient_kernel<Element>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
                        in);
}

}  // namespace

cudaError_t launch_pair_gradient(const PairGradientInputs& inputs, void* grad_teacher, void* grad_student,
                                 void* teacher_sums, void* student_sums, cudaStream_t stream) {
  return for_element_type(inputs.type, [&](auto element) {
    return launch_type<decltype(element)>(inputs, grad_teacher, grad_student, teacher_sums, student_sums, stream);
  });
}

}  // namespace deepclust

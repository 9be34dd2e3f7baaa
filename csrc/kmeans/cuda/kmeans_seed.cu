// Greedy k-means++ as two launches for every center; nothing waits for the device.
//
// The first one takes over the distances of the center that was chosen last and makes integers of the costs. Each block
// adds up a part of the rows. The last block to end draws the candidates: a warp finds the part in which a running sum
// crosses, then the row. It lays their rows side by side, chunk by chunk, where one address leads to all of a group.
//
// The second one measures the candidates: a quad has two rows, and reads them once for up to eight candidates, whose
// rows come from the caches. Distances are summed over squared differences, by the same code and so to the same bits as
// those of kmeans_assign. It stores for each candidate how far each row would be from its nearest center, and of each
// block the sums of integer costs and the largest cost. The last block chooses the candidate, and its largest cost
// gives the scale of the next integers.
//
// Sums are of integers, so that neither the number of blocks nor the order in which they end shows in the result. The
// rows are read in place where they need neither padding nor widening.
#include "kmeans/cuda/kmeans_seed.cuh"

#include <cmath>
#include <cstdint>

#include "core/cuda/block.cuh"
#include "core/cuda/element_type.cuh"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/host_device.h"
#include "kmeans/cuda/kmeans_distance.cuh"

namespace deepclust {
namespace {

using kmeans::closeness;
using kmeans::ComparedRow;
using kmeans::Values;

template <class T>
constexpr int kChunk = Chunk<T>::kCount;

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kQuads = kThreads / 4;
constexpr int kRows = 2;  // of a quad at a time: each chunk of a candidate that it loads serves both
constexpr int kTileRows = kQuads * kRows;
constexpr int kBlocksPerMultiprocessor = 2;

constexpr int64_t kMinPartRows = 512;
constexpr int64_t kMaxParts = 1024;
constexpr int kRun = 8;  // values of a lane in a search

constexpr double kLeastLargestCost = 1e-280;  // so that the scale stays finite

// Every field is 0 before the first launch. A last block leaves the ticket at 0.
struct SeedState {
  unsigned long long largest;  // bits of the largest cost, or at first of the largest weight
  long long best;              // the chosen one of the candidates
  unsigned ticket;
  unsigned not_finite;  // whether any row is not
};

template <class T>
struct KmeansSeedArguments {
  const T* rows;          // (N, row_depth)
  T* norms;               // (N,) for the cosine
  T* scales;              // (N,) 1 / max(norm, 1e-12), for the cosine
  T* least;               // (N,)
  int64_t* integers;      // (N,)
  T* distances;           // (C, N)
  int64_t* candidates;    // (C,)
  T* candidate_rows;      // (groups, chunks, group, kChunk) as they are compared; the last group repeats its last one
  int64_t* block_sums;    // (C, blocks)
  double* block_largest;  // (C, blocks)
  int64_t* part_sums;     // (parts,)
  SeedState* state;       // one
  int64_t* places;        // (K,)
  const double* uniform;  // (K, C)
  const double* weights;  // (N,) or null
  double span;            // scale times largest cost: their sum fits int64
  int64_t count, row_depth, num_candidates, part_rows;  // N, D in whole chunks, C, rows of a part
  bool cosine;

  __device__ __forceinline__ ComparedRow<T> row(int64_t i) const {
    if (!cosine) return {rows + i * row_depth, T(1), false};
    return {rows + i * row_depth, scales[i], norms[i] < T(kMinNorm)};
  }

  // Never decreases with the distance, so that the least distance has the least cost.
  __device__ __forceinline__ double cost(T distance, int64_t i) const {
    const double wide = static_cast<double>(distance);
    const double each = cosine ? larger(wide, 0.0) : wide * wide;
    return weights == nullptr ? each : each * weights[i];
  }

  __device__ __forceinline__ double scale() const {
    return span / larger(__longlong_as_double(static_cast<long long>(state->largest)), kLeastLargestCost);
  }
};

// What is too large is left out: there is none where costs are finite, as they have to be.
__device__ __forceinline__ int64_t integer_of(double scaled) {
  return scaled < 0x1p62 ? static_cast<int64_t>(scaled) : 0;
}

template <class T>
__device__ __forceinline__ Values<T> loaded(const T* row /* 16-byte aligned */, int64_t chunk) {
  const Chunk<T> elements = Chunk<T>::load(row, chunk);
  Values<T> result;
#pragma unroll
  for (int e = 0; e < kChunk<T>; ++e) result.value[e] = elements.element[e];
  return result;
}

// Sums of four values over a quad, as quad_sum adds them; lane q has that of values[q].
template <class T>
__device__ __forceinline__ T quad_sums(const T* values /* (4,) */) {
  const bool odd = quad_lane() % 2 != 0, upper = quad_lane() / 2 != 0;
  T low = odd ? values[1] : values[0], high = odd ? values[3] : values[2];
  low += __shfl_xor_sync(quad_mask(), odd ? values[0] : values[1], 1);
  high += __shfl_xor_sync(quad_mask(), odd ? values[2] : values[3], 1);
  return (upper ? high : low) + __shfl_xor_sync(quad_mask(), upper ? low : high, 2);
}

// Checks the rows, one to a quad, copies them where it has to, and measures them for the cosine. It finds the largest
// weight, which without weights is 1.
template <class T, class Row>
__global__ void __launch_bounds__(kThreads)
    prepare_rows_kernel(const KmeansSeedArguments<T> in, const Row* features /* (N, depth) */, int64_t depth,
                        T* copies /* (N, row_depth) or null */) {
  const int64_t first = int64_t{blockIdx.x} * kQuads, i = first + threadIdx.x / 4;
  double largest = 1;
  if (in.weights != nullptr) {
    largest = largest_of<kWarps>(in.weights + first, static_cast<int>(smaller<int64_t>(kQuads, in.count - first)));
  }
  if (threadIdx.x == 0 && (in.weights != nullptr || blockIdx.x == 0)) {
    const double positive = larger(largest, 0.0);  // not -0, whose bits are large
    atomicMax(&in.state->largest, static_cast<unsigned long long>(__double_as_longlong(positive)));
  }
  if (i >= in.count) return;
  const Row* source = features + i * depth;
  const Norm<T> norm = norm_of<T>(source, depth, true);
  for (int64_t k = quad_lane(); copies != nullptr && k < in.row_depth; k += 4) {
    copies[i * in.row_depth + k] = k < depth ? widen(source[k]) : T(0);
  }
  if (quad_lane() != 0) return;
  if (!norm.finite) atomicOr(&in.state->not_finite, 1u);
  if (!in.cosine) return;
  in.norms[i] = static_cast<T>(norm.value);
  in.scales[i] = ComparedRow<T>::make(nullptr, norm.value, true).scale;
}

// The largest cost of rows: without weights that of the largest distance, which saves most arithmetic in float64.
template <class T>
struct LargestCost {
  T distance = 0;
  double cost = 0;

  __device__ __forceinline__ void add(const KmeansSeedArguments<T>& in, T other, int64_t i) {
    if (in.weights == nullptr) {
      distance = larger(other, distance);
    } else {
      cost = larger(in.cost(other, i), cost);
    }
  }

  __device__ __forceinline__ double value(const KmeansSeedArguments<T>& in) const {
    return in.weights == nullptr ? in.cost(distance, 0) : cost;
  }
};

// The candidate that leaves the least cost; ties go to the first.
struct BestCandidate {
  int64_t sum = INT64_MAX, candidate = 0;
  double largest = 0;

  __device__ __forceinline__ void add(const BestCandidate& other) {
    if (other.sum < sum || (other.sum == sum && other.candidate < candidate)) *this = other;
  }
};

// Chooses from what all blocks have left, by one block.
template <class T>
__device__ void choose_candidate(const KmeansSeedArguments<T>& in, int64_t step, int64_t count) {
  DEEPCLUST_SHARED(int64_t, sums, [kWarps]);
  DEEPCLUST_SHARED(int64_t, places, [kWarps]);
  DEEPCLUST_SHARED(double, largest, [kWarps]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = static_cast<int>(gridDim.x);
  BestCandidate best;
  for (int64_t c = warp; c < count; c += kWarps) {
    BestCandidate found{0, c, 0};
#pragma unroll 4
    for (int block = lane; block < blocks; block += 32) {
      found.sum += in.block_sums[c * blocks + block];
      found.largest = larger(in.block_largest[c * blocks + block], found.largest);
    }
    found.sum = warp_sum(found.sum);
    found.largest = warp_max(found.largest);
    best.add(found);
  }
  if (lane == 0) {
    sums[warp] = best.sum;
    places[warp] = best.candidate;
    largest[warp] = best.largest;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int other = 1; other < kWarps && other < count; ++other) best.add({sums[other], places[other], largest[other]});
  in.state->best = best.candidate;
  in.state->largest = static_cast<unsigned long long>(__double_as_longlong(best.largest));
  in.state->ticket = 0;
  in.places[step] = in.candidates[best.candidate];
}

// Distances from `count` candidates, in groups of kGroup; the last block chooses one of them as center `step`.
template <class T, int kGroup, bool kCosine>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    measure_candidates_kernel(const KmeansSeedArguments<T> in, int64_t step, int64_t count) {
  constexpr int kOwn = kGroup / 4;  // candidates of a lane, in the end
  DEEPCLUST_SHARED(int64_t, sums, [kWarps][kGroup]);
  DEEPCLUST_SHARED(double, largest, [kWarps][kGroup]);
  if (in.state->not_finite != 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) in.places[step] = -1;
    return;
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool first_step = step == 0;
  const double scale = first_step ? 0 : in.scale();  // at first it is for weights; and one candidate needs no sum
  for (int64_t first = 0; first < count; first += kGroup) {
    const auto candidate = [&](int c) { return in.row(in.candidates[smaller(first + c, count - 1)]); };
    const T* others = in.candidate_rows + first * in.row_depth;  // (chunks, kGroup, kChunk)
    bool is_short[kOwn];
    int64_t own_sums[kOwn] = {};
    LargestCost<T> own_largest[kOwn];
#pragma unroll
    for (int k = 0; k < kOwn; ++k) is_short[k] = kCosine && candidate(4 * k + quad_lane()).is_short;
    for (int64_t tile = int64_t{blockIdx.x} * kTileRows; tile < in.count; tile += int64_t{gridDim.x} * kTileRows) {
      // The rows of a warp lie together, so that what it writes does.
      const int64_t first_row = tile + warp * 8 * kRows + lane / 4;
      const auto row = [&](int r) { return in.row(smaller(first_row + 8 * r, in.count - 1)); };
      T distances[kRows][kOwn];
      unsigned open = 0;  // bit r * kOwn + k: this distance takes more than squared differences
      {
        ComparedRow<T> rows[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) rows[r] = row(r);
        T squares[kRows][kGroup];
        kmeans::sum_squares<T>(
            in.row_depth / kChunk<T>,
            [&](int r, int64_t chunk) { return kCosine ? rows[r].values(chunk) : loaded(rows[r].row, chunk); },
            [&](int c, int64_t chunk) { return loaded(others, chunk * kGroup + c); }, squares);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int k = 0; k < kOwn; ++k) {
            const T squared = quad_sums(&squares[r][4 * k]);
            const bool is_open = kCosine ? rows[r].is_short || is_short[k] : !kmeans::has_root(squared);
            open |= is_open ? 1u << (r * kOwn + k) : 0u;
            // A float's root taken in float64 and then rounded is the same: the second rounding never shows.
            distances[r][k] =
                kCosine ? kmeans::distance_of<T>(1 - 0.5 * static_cast<double>(squared), true) : sqrt(squared);
          }
        }
      }
      for (int bit = 0; quad_ballot(open != 0) != 0; ++bit) {
        const int r = bit / kOwn, k = bit % kOwn;
        for (unsigned left = quad_ballot((open >> bit & 1u) != 0); left != 0; left &= left - 1) {
          const int owner = __ffs(static_cast<int>(left)) - 1;
          const double found = closeness(row(r), candidate(4 * k + owner), in.row_depth, kCosine);
          if (quad_lane() != owner) continue;
#pragma unroll
          for (int each = 0; each < kRows * kOwn; ++each) {
            if (each == bit) distances[each / kOwn][each % kOwn] = kmeans::distance_of<T>(found, kCosine);
          }
        }
        open &= ~(1u << bit);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t i = first_row + 8 * r;
        if (i >= in.count) continue;
        const T least = first_step ? Limits<T>::kInfinity : in.least[i];
        const int64_t integer = first_step ? 0 : in.integers[i];
#pragma unroll
        for (int k = 0; k < kOwn; ++k) {
          const int64_t c = first + 4 * k + quad_lane();
          if (c >= count) continue;
          const bool nearer = distances[r][k] < least;
          const T remaining = nearer ? distances[r][k] : least;
          own_sums[k] += nearer ? integer_of(scale * in.cost(remaining, i)) : integer;
          own_largest[k].add(in, remaining, i);
          in.distances[c * in.count + i] = remaining;
        }
      }
    }
    __syncthreads();  // all have read the sums of the group before
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      int64_t sum = own_sums[k];
      double most = own_largest[k].value(in);
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) {
        sum += __shfl_xor_sync(kWholeWarp, sum, offset);
        most = larger(most, __shfl_xor_sync(kWholeWarp, most, offset));
      }
      if (lane < 4) {
        sums[warp][4 * k + lane] = sum;
        largest[warp][4 * k + lane] = most;
      }
    }
    __syncthreads();
    const int64_t c = first + threadIdx.x;
    if (threadIdx.x < kGroup && c < count) {
      int64_t sum = 0;
      double most = 0;
#pragma unroll
      for (int from = 0; from < kWarps; ++from) {
        sum += sums[from][threadIdx.x];
        most = larger(largest[from][threadIdx.x], most);
      }
      in.block_sums[c * gridDim.x + blockIdx.x] = sum;
      in.block_largest[c * gridDim.x + blockIdx.x] = most;
    }
  }
  if (is_last_block(&in.state->ticket, gridDim.x)) choose_candidate(in, step, count);
}

// Where a running sum crosses, and the sum before that.
struct Crossing {
  int64_t place, before;
};

// The first place in [first, last) whose running sum, begun with `before`, exceeds `target`; `last` if none does. By a
// warp, in all its lanes. No value is below 0.
__device__ __forceinline__ Crossing find_crossing(const int64_t* values, int64_t first, int64_t last, int64_t before,
                                                  int64_t target) {
  const int lane = threadIdx.x % 32;
  for (; first < last; first += 32 * kRun) {
    const int64_t begin = first + lane * kRun;
    int64_t own[kRun], sum = 0;
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      own[r] = begin + r < last ? values[begin + r] : 0;
      sum += own[r];
    }
    int64_t through = before + sum;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int64_t others = __shfl_up_sync(kWholeWarp, through - before, offset);
      if (lane >= offset) through += others;
    }
    const unsigned beyond = __ballot_sync(kWholeWarp, through > target);
    if (beyond == 0) {
      before = __shfl_sync(kWholeWarp, through, 31);
      continue;
    }
    Crossing found{begin, through - sum};
    bool crossed = false;
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      crossed = crossed || found.before + own[r] > target;
      if (crossed) continue;
      found.before += own[r];
      ++found.place;
    }
    const int owner = __ffs(static_cast<int>(beyond)) - 1;
    return {__shfl_sync(kWholeWarp, found.place, owner), __shfl_sync(kWholeWarp, found.before, owner)};
  }
  return {last, before};
}

// Sum over the block, in all threads.
__device__ __forceinline__ int64_t sum_in_all(int64_t value) {
  DEEPCLUST_SHARED(int64_t, partial, [kWarps]);
  value = warp_sum(value);
  __syncthreads();  // all have read what an earlier call left
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  int64_t sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += partial[warp];
  return sum;
}

// Lays the rows of `count` candidates, as they are compared, side by side, a group at a time. By one block.
template <class T>
__device__ void gather_candidates(const KmeansSeedArguments<T>& in, int64_t count, int group /* a power of 2 */) {
  const int64_t chunks = in.row_depth / kChunk<T>, mask = group - 1;
  for (int64_t c = threadIdx.x / 32; c < ((count + mask) & ~mask); c += kWarps) {
    const ComparedRow<T> row = in.row(in.candidates[smaller(c, count - 1)]);
    T* const target = in.candidate_rows + (c & ~mask) * in.row_depth;
    for (int64_t chunk = threadIdx.x % 32; chunk < chunks; chunk += 32) {
      const Values<T> values = in.cosine ? row.values(chunk) : loaded(row.row, chunk);
      Chunk<T> elements;
#pragma unroll
      for (int e = 0; e < kChunk<T>; ++e) elements.element[e] = values.value[e];
      elements.store(target, chunk * group + (c & mask));
    }
  }
}

// Takes over the distances of the chosen candidate and draws the `count` candidates of center `step`, the first one by
// weight.
template <class T>
__global__ void __launch_bounds__(kThreads)
    draw_candidates_kernel(const KmeansSeedArguments<T> in, int64_t step, int64_t count, int group) {
  if (in.state->not_finite != 0) return;
  const double scale = in.scale();
  const T* chosen = in.distances + in.state->best * in.count;
  const int64_t parts = gridDim.x, begin = blockIdx.x * in.part_rows, end = smaller(begin + in.part_rows, in.count);
  int64_t sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    double share;
    if (step == 0) {
      share = in.weights == nullptr ? 1 : in.weights[i];
    } else {
      const T distance = chosen[i];
      in.least[i] = distance;
      share = in.cost(distance, i);
    }
    const int64_t integer = integer_of(scale * share);
    in.integers[i] = integer;
    sum += integer;
  }
  sum = sum_in_all(sum);
  if (threadIdx.x == 0) in.part_sums[blockIdx.x] = sum;
  if (!is_last_block(&in.state->ticket, gridDim.x)) return;

  int64_t total = 0;
  for (int64_t part = threadIdx.x; part < parts; part += kThreads) total += in.part_sums[part];
  total = sum_in_all(total);
  for (int64_t c = threadIdx.x / 32; c < count; c += kWarps) {
    const double uniform = in.uniform[step * in.num_candidates + c];
    const int64_t target = static_cast<int64_t>(uniform * static_cast<double>(total));
    const Crossing part = find_crossing(in.part_sums, 0, parts, 0, target);
    const int64_t from = part.place * in.part_rows, to = smaller(from + in.part_rows, in.count);
    const int64_t place = find_crossing(in.integers, from, to, part.before, target).place;
    // Where nothing exceeds the target the search has ended behind the last row.
    if (threadIdx.x % 32 == 0) in.candidates[c] = smaller(place, in.count - 1);
  }
  if (threadIdx.x == 0) in.state->ticket = 0;
  __syncthreads();
  gather_candidates(in, count, group);
}

// Scale times largest cost: a sum of `count` such integers fits int64, and the reference says how many bits that
// leaves.
double span_of(int64_t count) {
  int bits = 0;
  for (int64_t left = count; left != 0; left /= 2) ++bits;
  return std::ldexp(1.0, 62 - bits);
}

// Candidates whose distances a quad sums at once.
template <class T>
int group_of(int64_t count) {
  return sizeof(T) == sizeof(float) && count > 4 ? 8 : 4;
}

template <class T>
cudaError_t launch_measure(const KmeansSeedArguments<T>& in, int64_t blocks, int64_t step, int64_t count,
                           cudaStream_t stream) {
  const auto run = [&](void (*kernel)(KmeansSeedArguments<T>, int64_t, int64_t)) {
    return device::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, in, step, count);
  };
  if constexpr (sizeof(T) == sizeof(float)) {
    if (group_of<T>(count) == 8) {
      return in.cosine ? run(measure_candidates_kernel<T, 8, true>) : run(measure_candidates_kernel<T, 8, false>);
    }
  }
  return in.cosine ? run(measure_candidates_kernel<T, 4, true>) : run(measure_candidates_kernel<T, 4, false>);
}

template <class Row>
cudaError_t launch_type(const KmeansSeedInputs& inputs, const KmeansSeedPlan& plan,
                        const KmeansSeedWorkspace& workspace, int64_t* places, cudaStream_t stream) {
  using T = Widened<Row>;
  const Row* features = static_cast<const Row*>(inputs.features);
  T* const copies = static_cast<T*>(workspace.field[kSeedRows]);
  KmeansSeedArguments<T> in{};
  in.rows = copies;
  if constexpr (sizeof(Row) == sizeof(T)) {
    if (!plan.copies) in.rows = features;
  }
  in.norms = static_cast<T*>(workspace.field[kSeedNorms]);
  in.scales = static_cast<T*>(workspace.field[kSeedScales]);
  in.least = static_cast<T*>(workspace.field[kSeedLeast]);
  in.integers = static_cast<int64_t*>(workspace.field[kSeedIntegers]);
  in.distances = static_cast<T*>(workspace.field[kSeedDistances]);
  in.candidates = static_cast<int64_t*>(workspace.field[kSeedCandidates]);
  in.candidate_rows = static_cast<T*>(workspace.field[kSeedCandidateRows]);
  in.block_sums = static_cast<int64_t*>(workspace.field[kSeedBlockSums]);
  in.block_largest = static_cast<double*>(workspace.field[kSeedBlockLargest]);
  in.part_sums = static_cast<int64_t*>(workspace.field[kSeedPartSums]);
  in.state = static_cast<SeedState*>(workspace.field[kSeedState]);
  in.places = places;
  in.uniform = inputs.uniform;
  in.weights = inputs.weights;
  in.span = span_of(inputs.count);
  in.count = inputs.count;
  in.row_depth = plan.row_depth;
  in.num_candidates = inputs.candidates;
  in.part_rows = plan.part_rows;
  in.cosine = inputs.cosine;

  cudaError_t error = device::memset_async(in.state, 0, sizeof(SeedState), stream);
  if (error != cudaSuccess) return error;
  error = device::launch(prepare_rows_kernel<T, Row>, dim3(static_cast<unsigned>(divide_up(in.count, kQuads))),
                         dim3(kThreads), 0, stream, in, features, inputs.depth, copies);
  for (int64_t step = 0; step < inputs.centers && error == cudaSuccess; ++step) {
    const int64_t count = step == 0 ? 1 : inputs.candidates;
    error = device::launch(draw_candidates_kernel<T>, dim3(static_cast<unsigned>(plan.parts)), dim3(kThreads), 0,
                           stream, in, step, count, group_of<T>(count));
    if (error != cudaSuccess) return error;
    error = launch_measure(in, plan.blocks, step, count, stream);
  }
  return error;
}

bool is_wide(ElementType type) { return type == ElementType::kF64; }

}  // namespace

KmeansSeedPlan plan_kmeans_seed(const KmeansSeedInputs& inputs, int multiprocessors) {
  const int64_t chunk = 16 / (is_wide(inputs.type) ? sizeof(double) : sizeof(float));
  KmeansSeedPlan plan{};
  plan.row_depth = divide_up(inputs.depth, chunk) * chunk;
  const bool widened = inputs.type == ElementType::kF16 || inputs.type == ElementType::kBf16;
  const bool aligned = reinterpret_cast<uintptr_t>(inputs.features) % 16 == 0;
  plan.copies = widened || plan.row_depth != inputs.depth || !aligned;
  plan.blocks =
      smaller<int64_t>(divide_up(inputs.count, kTileRows), int64_t{multiprocessors} * kBlocksPerMultiprocessor);
  plan.part_rows = larger(kMinPartRows, divide_up(inputs.count, kMaxParts));
  plan.parts = divide_up(inputs.count, plan.part_rows);
  return plan;
}

KmeansSeedBytes kmeans_seed_bytes(const KmeansSeedInputs& inputs, const KmeansSeedPlan& plan) {
  const int64_t wide = is_wide(inputs.type) ? sizeof(double) : sizeof(float), eight = sizeof(int64_t);
  KmeansSeedBytes bytes{};
  bytes.field[kSeedRows] = plan.copies ? inputs.count * plan.row_depth * wide : 0;
  bytes.field[kSeedNorms] = inputs.cosine ? inputs.count * wide : 0;
  bytes.field[kSeedScales] = inputs.cosine ? inputs.count * wide : 0;
  bytes.field[kSeedLeast] = inputs.count * wide;
  bytes.field[kSeedIntegers] = inputs.count * eight;
  bytes.field[kSeedDistances] = inputs.candidates * inputs.count * wide;
  bytes.field[kSeedCandidates] = inputs.candidates * eight;
  const int64_t group = is_wide(inputs.type) ? group_of<double>(inputs.candidates) : group_of<float>(inputs.candidates);
  bytes.field[kSeedCandidateRows] = divide_up(inputs.candidates, group) * group * plan.row_depth * wide;
  bytes.field[kSeedBlockSums] = inputs.candidates * plan.blocks * eight;
  bytes.field[kSeedBlockLargest] = inputs.candidates * plan.blocks * eight;
  bytes.field[kSeedPartSums] = plan.parts * eight;
  bytes.field[kSeedState] = sizeof(SeedState);
  return bytes;
}

cudaError_t launch_kmeans_seed(const KmeansSeedInputs& inputs, const KmeansSeedPlan& plan,
                               const KmeansSeedWorkspace& workspace, int64_t* places, cudaStream_t stream) {
  return for_element_type(inputs.type, [&](auto element) {
    return launch_type<decltype(element)>(inputs, plan, workspace, places, stream);
  });
}

}  // namespace deepclust

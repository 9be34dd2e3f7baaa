// Batch-hard mining without any N x N matrix.
//
// A thread block owns some rows and streams the columns by: products of its teacher rows with teacher columns (which
// tell negatives from positives) and with student columns (which order them), both on tensor cores. Products only rule
// columns out: a bound on their rounding says which columns can still be the hardest of a row, and these go on a short
// list. The last block of a row to finish decides among the listed columns by distances summed over squared
// differences, ties to the lowest index. So neither the precision of the products nor the order in which blocks run
// shows in the result. A row whose list overflows (nearly equal rows) is searched exactly, column by column.
//
// Work: 4 N^2 D operations on tensor cores, about ten more per pair, and a few exact distances per row; O(N D) memory.
#include "cuda/batch_hard_mining.cuh"

#include <cmath>
#include <type_traits>

#include "common/constants.h"
#include "common/hsd_row.h"
#include "common/numeric.cuh"
#include "common/quad.cuh"
#include "common/tile_gemm.cuh"

namespace deepclust {
namespace {

constexpr int kPrepareThreads = 128;
constexpr int kRowsPerPrepareBlock = kPrepareThreads / 4;  // one quad each
constexpr int kMaxSplits = 16;
constexpr int kMaxCandidates = 32;  // of a row, class and split
constexpr int kOpenRows = 4;        // rows that share a pass of the exact search

enum RowValue { kTeacherBias, kStudentBias, kSelfSquared, kTeacherScale, kStudentScale, kRowValues };
enum Kind { kNegative, kPositive };

template <class T>
struct alignas(2 * sizeof(T)) Candidate {  // moved as one vector, so without padding
  T score;
  std::conditional_t<sizeof(T) == 8, int64_t, int32_t> column;
};

// What one split found out about one row. A count above kMaxCandidates says that there were too many.
template <class T>
struct SearchResult {
  T floor;    // no negative with a score below is the nearest
  T ceiling;  // no positive with a score above is the farthest
  int count[2];
};

template <class P>
struct RowElementOf {
  using type = typename P::Element;
};
template <>
struct RowElementOf<F32AsBf16x3> {
  using type = float;
};

template <class P>
struct Arguments {
  using T = typename P::Accumulator;
  using Row = typename RowElementOf<P>::type;
  const Row* input[2];            // (N, D) teacher, student
  Row* rows[2];                   // (N, row_depth)
  typename P::Element* split[4];  // (N, row_depth) teacher high, low, student high, low
  T* values;                      // (kRowValues, N)
  T* largest_squares;             // (2, prepare_blocks)
  Candidate<T>* candidates;       // (N, splits, 2, kMaxCandidates)
  SearchResult<T>* results;       // (splits, N)
  unsigned* tickets;              // (row_blocks + 1,)
  double* sums;                   // (row_blocks, kHsdSums)
  MiningOutputs out;
  int64_t count, depth, row_depth;
  int row_blocks, splits, prepare_blocks;
  bool normalize;

  __device__ __forceinline__ T value(RowValue which, int64_t row) const { return values[which * count + row]; }

  __device__ __forceinline__ ScaledRow<Row> row(int which, int64_t index) const {
    ScaledRow<Row> row{rows[which] + index * row_depth, T(1)};
    if constexpr (sizeof(Row) == 2) row.scale = value(which == 0 ? kTeacherScale : kStudentScale, index);
    return row;
  }

  __device__ __forceinline__ Candidate<T>* list(int64_t row, int split_index, int kind) const {
    return candidates + ((row * splits + split_index) * 2 + kind) * kMaxCandidates;
  }

  __device__ __forceinline__ TileOperand<P> operand(int which) const {
    if constexpr (P::kParts == 2) {
      return {{split[2 * which], split[2 * which + 1]}, count};
    } else {
      return {{rows[which]}, count};
    }
  }
};

// ---- prepare the rows

template <class T>
struct Norm {
  bool finite;
  double value;
};

// L2 norm of a row, by a quad.
template <class T, class Row>
__device__ Norm<T> norm_of(const Row* source /* (depth,) */, int64_t depth, bool normalize) {
  T squares = 0;
  for (int64_t k = quad_lane(); k < depth; k += 4) squares += widen(source[k]) * widen(source[k]);
  squares = quad_sum(squares);
  if (!normalize) return {squares <= Limits<T>::kMax, sqrt(static_cast<double>(squares))};
  // Squares that leave the comfortable range are summed again relative to the largest element.
  constexpr T kTiny = Limits<T>::kTiny / Limits<T>::kEpsilon;
  if (squares > kTiny && squares < 1 / kTiny) return {true, sqrt(static_cast<double>(squares))};
  double largest = 0;
  bool finite = true;
  for (int64_t k = quad_lane(); k < depth; k += 4) {
    const double size = fabs(static_cast<double>(widen(source[k])));
    finite = finite && size <= Limits<double>::kMax;
    largest = larger(size, largest);
  }
  finite = quad_ballot(finite) == 0xf;
  largest = quad_max(largest);
  double scaled = 0;
  for (int64_t k = quad_lane(); k < depth && finite && largest > 0; k += 4) {
    const double ratio = static_cast<double>(widen(source[k])) / largest;
    scaled += ratio * ratio;
  }
  return {finite, largest * sqrt(quad_sum(scaled))};
}

// Writes row i of teacher (0) or student (1) and returns its squared norm, infinite if the row is not finite; by a
// quad.
template <class P>
__device__ typename P::Accumulator prepare_row(const Arguments<P>& in, int which, int64_t i) {
  using T = typename P::Accumulator;
  using Row = typename Arguments<P>::Row;
  const Row* source = in.input[which] + i * in.depth;
  const Norm<T> norm = norm_of<T>(source, in.depth, in.normalize);
  const T inverse_norm = in.normalize ? static_cast<T>(1 / larger(norm.value, kMinNorm)) : T(1);
  // bfloat16 elements are kept, but for a power of two, which brings the norm near 1: products must not overflow.
  int exponent = 0;
  if (std::is_same<Row, __nv_bfloat16>::value && norm.finite && norm.value > 0) exponent = ilogb(norm.value);
  ScaledRow<Row> row{in.rows[which] + i * in.row_depth, T(1)};
  if constexpr (sizeof(Row) == 2) row.scale = ldexpf(inverse_norm, exponent);
  T squared = 0;
  for (int64_t chunk = quad_lane(); chunk < in.row_depth / Chunk<Row>::kCount; chunk += 4) {
    Chunk<Row> stored;
#pragma unroll
    for (int e = 0; e < Chunk<Row>::kCount; ++e) {
      const int64_t k = chunk * Chunk<Row>::kCount + e;
      T element = k < in.depth ? widen(source[k]) : T(0);
      if constexpr (sizeof(Row) != 2) element *= inverse_norm;
      if constexpr (std::is_same<Row, __nv_bfloat16>::value) element = ldexpf(element, -exponent);
      stored.element[e] = narrow<Row>(element);
      const T value = row.value(stored.element[e]);
      squared += value * value;
      if constexpr (P::kParts == 2) {
        const auto high = narrow<typename P::Element>(value);
        in.split[2 * which][i * in.row_depth + k] = high;
        in.split[2 * which + 1][i * in.row_depth + k] = narrow<typename P::Element>(value - widen(high));
      }
    }
    stored.store(in.rows[which] + i * in.row_depth, chunk);
  }
  squared = quad_sum(squared);
  if (quad_lane() == 0) {
    static_cast<T*>(in.out.inverse_norm)[which * in.count + i] = inverse_norm;
    in.values[(kTeacherBias + which) * in.count + i] = squared / 2;
    if (sizeof(Row) == 2) in.values[(kTeacherScale + which) * in.count + i] = row.scale;
  }
  return norm.finite ? squared : Limits<T>::kInfinity;
}

// The largest value of a warp, in all its lanes.
template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value = larger(value, __shfl_xor_sync(kWholeWarp, value, offset));
  return value;
}

template <class P>
__global__ void __launch_bounds__(kPrepareThreads, 4) prepare_rows_kernel(const Arguments<P> in) {
  using T = typename P::Accumulator;
  using Row = typename Arguments<P>::Row;
  const int64_t i = int64_t{blockIdx.x} * kRowsPerPrepareBlock + threadIdx.x / 4;
  T squares[2] = {0, 0};
  if (i < in.count) {
    T scale[2] = {1, 1};
    for (int which = 0; which < 2; ++which) {
      squares[which] = prepare_row(in, which, i);
      if constexpr (sizeof(Row) == 2) {
        __syncwarp(quad_mask());
        scale[which] = in.value(which == 0 ? kTeacherScale : kStudentScale, i);
      }
    }
    // Every lane reads the chunks that it wrote itself.
    const ScaledRow<Row> teacher{in.rows[0] + i * in.row_depth, scale[0]};
    const ScaledRow<Row> student[1] = {{in.rows[1] + i * in.row_depth, scale[1]}};
    T squared[1];
    squared_distances(teacher, student, in.row_depth, squared);
    if (quad_lane() == 0) in.values[kSelfSquared * in.count + i] = larger(squared[0], T(kMinSquaredDistance));
  }
  DEEPCLUST_SHARED(T, largest, [2][kPrepareThreads / 32]);
  for (int which = 0; which < 2; ++which) {
    const T warp_largest = warp_max(squares[which]);
    if (threadIdx.x % 32 == 0) largest[which][threadIdx.x / 32] = warp_largest;
  }
  __syncthreads();
  if (threadIdx.x < 2) {
    T block_largest = 0;
    for (int warp = 0; warp < kPrepareThreads / 32; ++warp)
      block_largest = larger(block_largest, largest[threadIdx.x][warp]);
    in.largest_squares[threadIdx.x * in.prepare_blocks + blockIdx.x] = block_largest;
  }
  if (blockIdx.x == 0) {
    for (int ticket = threadIdx.x; ticket <= in.row_blocks; ticket += kPrepareThreads) in.tickets[ticket] = 0;
  }
}

// ---- search the columns

// Row functor. A score is x.y - |y|^2 / 2, larger for a nearer y. From its teacher score u a column of row i is a
// negative for certain if u < low, a positive for certain if u > high; student scores s order the columns.
template <class P, int kWarps>
struct PairSearch {
  using Gemm = TileGemm<P, kWarps, 2>;
  using T = typename P::Accumulator;
  static constexpr int kSlots = 2;  // rows of a quad

  struct RowState {
    T low, high;
    T floor, ceiling;  // scores of negatives and positives that still matter
    T margin;          // twice the rounding of a student score
    T scale;
    int count[2];
  };

  const Arguments<P>& in;
  int64_t first_row;
  RowState state[kSlots];

  __device__ __forceinline__ PairSearch(const Arguments<P>& arguments, int64_t first, T teacher_norm_max,
                                        T student_norm_max)
      : in(arguments), first_row(first) {
    const T rounding = (in.depth + 32) * Limits<T>::kEpsilon + P::kSplitError;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      RowState& row = state[slot];
      row.count[kNegative] = row.count[kPositive] = 0;
      const int64_t i = row_index(slot);
      if (i >= in.count) {  // nothing is ever listed
        const T infinity = Limits<T>::kInfinity;
        row = {infinity, -infinity, infinity, -infinity, 0, 0, {0, 0}};
        continue;
      }
      const T norm_squared = 2 * in.value(kTeacherBias, i), self_squared = in.value(kSelfSquared, i);
      const T norm = sqrt(norm_squared), reach = norm + student_norm_max;
      const T threshold = (norm_squared - self_squared) / 2;  // also the student score of i itself, its first positive
      // Rounding of the products, of the bias, and of the exact distances that decide in the end.
      const T class_margin = rounding * (norm * teacher_norm_max +
                                         (teacher_norm_max * teacher_norm_max + norm_squared + self_squared) / 4) +
                             T(kMinSquaredDistance);
      row.margin =
          2 * (rounding * (norm * student_norm_max + (student_norm_max * student_norm_max + reach * reach) / 4) +
               T(kMinSquaredDistance));
      row.low = threshold - class_margin;
      row.high = threshold + class_margin;
      row.floor = -Limits<T>::kMax;
      row.ceiling = threshold + row.margin;
      row.scale = sizeof(typename Arguments<P>::Row) == 2 ? in.value(kTeacherScale, i) : T(1);
    }
  }

  __device__ __forceinline__ int64_t row_index(int slot) const { return first_row + Gemm::row_of(slot); }

  __device__ __forceinline__ void operator()(int64_t first_column, typename Gemm::Products& scores) {
    to_scores(first_column, scores);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const RowState& row = state[slot];
      T nearest = -Limits<T>::kInfinity, farthest = Limits<T>::kInfinity;
#pragma unroll
      for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
        const T u = score(scores, 0, slot, c), s = score(scores, 1, slot, c);
        if (u < row.high) nearest = larger(nearest, s);
        if (u > row.low) farthest = smaller(farthest, s);
      }
      if (__any_sync(kWholeWarp, nearest >= row.floor || farthest <= row.ceiling)) {
        list_columns(slot, first_column, scores);
      }
    }
  }

  __device__ __forceinline__ void write_results(int split) const {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int64_t i = row_index(slot);
      const RowState& row = state[slot];
      if (quad_lane() == 0 && i < in.count) {
        in.results[split * in.count + i] = {row.floor, row.ceiling, {row.count[kNegative], row.count[kPositive]}};
      }
    }
  }

 private:
  static __device__ __forceinline__ T& score(typename Gemm::Products& scores, int set, int slot, int c) {
    return scores[set][c / 2][slot * 2 + c % 2];
  }

  // Absent columns get minus infinity twice: negatives that are never the nearest.
  __device__ __forceinline__ void to_scores(int64_t first_column, typename Gemm::Products& products) const {
#pragma unroll
    for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
      const int64_t j = first_column + Gemm::column_of(c / 2, c % 2);
#pragma unroll
      for (int set = 0; set < 2; ++set) {
        const T bias = j < in.count ? in.values[(kTeacherBias + set) * in.count + j] : Limits<T>::kInfinity;
        T scale = 1;
        if constexpr (sizeof(typename Arguments<P>::Row) == 2) {
          scale = j < in.count ? in.values[(kTeacherScale + set) * in.count + j] : T(0);
        }
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          T& product = score(products, set, slot, c);
          product = product * (state[slot].scale * scale) - bias;
        }
      }
    }
  }

  // Raises floor and ceiling of the slot's rows by the columns that are certain, and lists what can still win.
  __device__ __forceinline__ void list_columns(int slot, int64_t first_column, typename Gemm::Products& scores) {
    RowState& row = state[slot];
    T nearest = -Limits<T>::kInfinity, farthest = Limits<T>::kInfinity;
#pragma unroll
    for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
      const T u = score(scores, 0, slot, c), s = score(scores, 1, slot, c);
      if (u < row.low) nearest = larger(nearest, s);
      if (u > row.high) farthest = smaller(farthest, s);
    }
    row.floor = larger(row.floor, quad_max(nearest) - row.margin);
    row.ceiling = smaller(row.ceiling, quad_min(farthest) + row.margin);
    unsigned hits[2] = {0, 0};
#pragma unroll
    for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
      const T u = score(scores, 0, slot, c), s = score(scores, 1, slot, c);
      if (u < row.high && s >= row.floor) hits[kNegative] |= 1u << c;
      if (u > row.low && s <= row.ceiling) hits[kPositive] |= 1u << c;
    }
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      for (unsigned left = hits[kind]; __any_sync(kWholeWarp, left != 0); left &= left - 1) {
        const int hit = __ffs(left) - 1;
        T s = 0;
        int column = 0;
#pragma unroll
        for (int c = 0; c < 2 * Gemm::kColumnTiles; ++c) {
          if (c != hit) continue;
          s = score(scores, 1, slot, c);
          column = static_cast<int>(first_column) + Gemm::column_of(c / 2, c % 2);
        }
        append(slot, kind, hit >= 0, {s, column});
      }
    }
  }

  // Adds the candidates of a quad to its row's list, in the order of the lanes.
  __device__ __forceinline__ void append(int slot, int kind, bool present, Candidate<T> candidate) {
    RowState& row = state[slot];
    int& count = row.count[kind];
    const unsigned lanes = quad_ballot(present);
    if (lanes == 0 || count > kMaxCandidates) return;
    Candidate<T>* list = in.list(row_index(slot), blockIdx.y, kind);
    if (count + __popc(lanes) > kMaxCandidates) count = drop_ruled_out(list, count, kind, row.floor, row.ceiling);
    if (count + __popc(lanes) > kMaxCandidates) {
      count = kMaxCandidates + 1;
      return;
    }
    if (present) list[count + __popc(lanes & ((1u << quad_lane()) - 1))] = candidate;
    count += __popc(lanes);
  }

  static __device__ int drop_ruled_out(Candidate<T>* list, int count, int kind, T floor, T ceiling) {
    int kept = 0;
    for (int first = 0; first < count; first += 4) {
      __syncwarp(quad_mask());  // what other lanes of the quad have written
      Candidate<T> candidate{};
      bool keep = false;
      if (first + quad_lane() < count) {
        candidate = list[first + quad_lane()];
        keep = kind == kNegative ? candidate.score >= floor : candidate.score <= ceiling;
      }
      const unsigned lanes = quad_ballot(keep);
      __syncwarp(quad_mask());  // all have read before one overwrites
      if (keep) list[kept + __popc(lanes & ((1u << quad_lane()) - 1))] = candidate;
      kept += __popc(lanes);
    }
    __syncwarp(quad_mask());
    return kept;
  }
};

// ---- decide by distances

// The hardest pairs of a row among the columns considered so far.
template <class T>
struct HardestPairs {
  T self_squared;
  int negative, positive;
  T negative_squared, positive_squared;                  // clamped, teacher to student
  T negative_teacher_squared, positive_teacher_squared;  // teacher to teacher

  // A row is its own first positive.
  static __device__ __forceinline__ HardestPairs start(int64_t row, T self_squared) {
    return {self_squared, -1, static_cast<int>(row), Limits<T>::kInfinity, self_squared, 0, 0};
  }

  __device__ __forceinline__ void add_negative(int column, T squared, T teacher_squared) {
    if (column < 0 || squared > negative_squared || (squared == negative_squared && column > negative)) return;
    negative = column;
    negative_squared = squared;
    negative_teacher_squared = teacher_squared;
  }

  __device__ __forceinline__ void add_positive(int column, T squared, T teacher_squared) {
    if (squared < positive_squared || (squared == positive_squared && column > positive)) return;
    positive = column;
    positive_squared = squared;
    positive_teacher_squared = teacher_squared;
  }

  __device__ __forceinline__ void add(int column, T squared, T teacher_squared) {
    squared = larger(squared, T(kMinSquaredDistance));
    if (teacher_squared > self_squared) {
      add_negative(column, squared, teacher_squared);
    } else {
      add_positive(column, squared, teacher_squared);
    }
  }

  // Adds what the lane `offset` away has found.
  __device__ __forceinline__ void merge(int offset) {
    const auto other = [&](auto value) { return __shfl_xor_sync(kWholeWarp, value, offset); };
    const int other_negative = other(negative), other_positive = other(positive);
    const T negative_squares[2] = {other(negative_squared), other(negative_teacher_squared)};
    const T positive_squares[2] = {other(positive_squared), other(positive_teacher_squared)};
    add_negative(other_negative, negative_squares[0], negative_squares[1]);
    add_positive(other_positive, positive_squares[0], positive_squares[1]);
  }
};

// Decides a row by its candidates, by a quad; false if a list was too short.
template <class P>
__device__ bool decide_by_candidates(const Arguments<P>& in, int64_t i, HardestPairs<typename P::Accumulator>& pairs) {
  using T = typename P::Accumulator;
  using Row = typename Arguments<P>::Row;
  T floor = -Limits<T>::kMax, ceiling = Limits<T>::kMax;
  int longest = 0;
  for (int split = quad_lane(); split < in.splits; split += 4) {
    const SearchResult<T> result = in.results[split * in.count + i];
    floor = larger(floor, result.floor);
    ceiling = smaller(ceiling, result.ceiling);
    longest = larger(longest, larger(result.count[kNegative], result.count[kPositive]));
  }
  if (quad_max(longest) > kMaxCandidates) return false;
  floor = quad_max(floor);
  ceiling = quad_min(ceiling);
  const ScaledRow<Row> own = in.row(0, i);
  for (int split = 0; split < in.splits; ++split) {
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      const int count = in.results[split * in.count + i].count[kind];
      const Candidate<T>* list = in.list(i, split, kind);
      for (int first = 0; first < count; first += 4) {
        int column = -1;
        if (first + quad_lane() < count) {
          const Candidate<T> candidate = list[first + quad_lane()];
          const bool can_win = kind == kNegative ? candidate.score >= floor : candidate.score <= ceiling;
          if (can_win && candidate.column != i) column = static_cast<int>(candidate.column);
        }
        for (unsigned lanes = quad_ballot(column >= 0); lanes != 0; lanes &= lanes - 1) {
          const int j = __shfl_sync(quad_mask(), column, __ffs(lanes) - 1, 4);
          const ScaledRow<Row> others[2] = {in.row(1, j), in.row(0, j)};
          T squared[2];
          squared_distances(own, others, in.row_depth, squared);
          pairs.add(j, squared[0], squared[1]);
        }
      }
    }
  }
  return true;
}

// Decides rows by all columns, by a warp: `open` has the first lanes of the quads whose row `i` is to be decided.
template <class P>
__device__ void decide_by_all_columns(const Arguments<P>& in, int64_t i, unsigned open,
                                      HardestPairs<typename P::Accumulator>& pairs) {
  using T = typename P::Accumulator;
  using Row = typename Arguments<P>::Row;
  while (open != 0) {
    int owner[kOpenRows];
    ScaledRow<Row> own[kOpenRows];
    HardestPairs<T> found[kOpenRows];
#pragma unroll
    for (int r = 0; r < kOpenRows; ++r) {  // fewer rows than kOpenRows: the last one again
      owner[r] = open != 0 ? __ffs(open) - 1 : owner[r > 0 ? r - 1 : 0];
      open &= open - 1;
      const int64_t row = __shfl_sync(kWholeWarp, i, owner[r]);
      own[r] = in.row(0, row);
      found[r] = HardestPairs<T>::start(row, in.value(kSelfSquared, row));
    }
    for (int64_t j = threadIdx.x % 32 / 4; j < in.count; j += 8) {
      T squared[kOpenRows], teacher_squared[kOpenRows];
      squared_distances(in.row(1, j), own, in.row_depth, squared);
      squared_distances(in.row(0, j), own, in.row_depth, teacher_squared);
#pragma unroll
      for (int r = 0; r < kOpenRows; ++r) {
        found[r].add(static_cast<int>(j), squared[r], teacher_squared[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kOpenRows; ++r) {
      for (int offset = 4; offset < 32; offset *= 2) found[r].merge(offset);
      if (static_cast<int>(threadIdx.x % 32 / 4 * 4) == owner[r]) pairs = found[r];
    }
  }
}

// ---- write the results

template <class T>
__device__ __forceinline__ T inverse_of(T squared, T distance) {
  return squared > T(kMinSquaredDistance) ? 1 / distance : T(0);
}

// Writes one row and adds it to the sums of the loss.
template <class P>
__device__ void write_row(const Arguments<P>& in, int64_t i, bool finite,
                          const HardestPairs<typename P::Accumulator>& pairs, double* sums /* (kHsdSums,) */) {
  using T = typename P::Accumulator;
  using Row = typename Arguments<P>::Row;
  const T nan = Limits<T>::kNan;
  MinedRow<T> row{-1, -1, nan, nan, nan, nan, nan, nan};
  T inverse_teacher[2] = {nan, nan};
  if (finite) {
    const T squared[2] = {larger(pairs.positive_teacher_squared, T(kMinSquaredDistance)),
                          larger(pairs.negative_teacher_squared, T(kMinSquaredDistance))};
    row = {pairs.positive, pairs.negative, sqrt(pairs.positive_squared), 0, sqrt(squared[0]), 0, 0, 0};
    row.positive_inverse = inverse_of(pairs.positive_squared, row.positive);
    inverse_teacher[0] = inverse_of(squared[0], row.positive_teacher);
    inverse_teacher[1] = 0;
    if (pairs.negative >= 0) {
      row.negative = sqrt(pairs.negative_squared);
      row.negative_teacher = sqrt(squared[1]);
      row.negative_inverse = inverse_of(pairs.negative_squared, row.negative);
      inverse_teacher[1] = inverse_of(squared[1], row.negative_teacher);
    }
  }
  in.out.positive_index[i] = row.positive_index;
  in.out.negative_index[i] = row.negative_index;
  if (in.out.inverse_distance != nullptr) {
    const T distance[4] = {row.positive, row.negative, row.positive_teacher, row.negative_teacher};
    const T inverse[4] = {row.positive_inverse, row.negative_inverse, inverse_teacher[0], inverse_teacher[1]};
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      static_cast<Row*>(in.out.distance[pair])[i] = narrow<Row>(distance[pair]);
      static_cast<T*>(in.out.inverse_distance)[pair * in.count + i] = inverse[pair];
    }
  }
  if (in.out.loss.slope != nullptr) {
    const HsdRow<T> loss = hsd_row(row, in.out.loss.temperature, sums);
    T* slope = static_cast<T*>(in.out.loss.slope);
    slope[i] = loss.positive_slope;
    slope[in.count + i] = loss.negative_slope;
    if (in.out.loss.reduction == LossReduction::kNone) static_cast<Row*>(in.out.loss.loss)[i] = narrow<Row>(loss.loss);
  }
}

// Whether this is the last of `expected` thread blocks to come here; if so, it sees what the others have written.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, unsigned expected) {
  DEEPCLUST_SHARED(bool, last, [1]);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last[0] = atomicAdd(ticket, 1u) + 1 == expected;
  }
  __syncthreads();
  if (last[0]) __threadfence();
  return last[0];
}

// Sums over the block, in thread 0; the order depends on nothing.
template <int kWarps>
__device__ void sum_over_block(double (&sums)[kHsdSums]) {
  DEEPCLUST_SHARED(double, partial, [kWarps][kHsdSums]);
#pragma unroll
  for (int k = 0; k < kHsdSums; ++k) {
    for (int offset = 16; offset > 0; offset /= 2) sums[k] += __shfl_xor_sync(kWholeWarp, sums[k], offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][k] = sums[k];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int k = 0; k < kHsdSums; ++k) {
    for (int warp = 1; warp < kWarps; ++warp) sums[k] += partial[warp][k];
  }
}

// Loss and statistics from the sums of all row blocks.
template <int kWarps, class P>
__device__ void finish_loss(const Arguments<P>& in) {
  using T = typename P::Accumulator;
  using Row = typename Arguments<P>::Row;
  double sums[kHsdSums] = {};
  for (int block = threadIdx.x; block < in.row_blocks; block += 32 * kWarps) {
    for (int k = 0; k < kHsdSums; ++k) sums[k] += in.sums[int64_t{block} * kHsdSums + k];
  }
  sum_over_block<kWarps>(sums);
  if (threadIdx.x != 0) return;
  hsd_stats(sums, in.count, static_cast<T*>(in.out.loss.stats));
  if (in.out.loss.reduction == LossReduction::kNone) return;
  const double loss = in.out.loss.reduction == LossReduction::kMean ? sums[0] / in.count : sums[0];
  static_cast<Row*>(in.out.loss.loss)[0] = narrow<Row>(static_cast<T>(loss));
}

// Largest squared norms over all prepared blocks, the same in every thread.
template <int kWarps, class P>
__device__ void find_largest_squares(const Arguments<P>& in, typename P::Accumulator (&squares)[2]) {
  using T = typename P::Accumulator;
  DEEPCLUST_SHARED(T, partial, [2][kWarps]);
  for (int which = 0; which < 2; ++which) {
    T largest = 0;
    for (int block = threadIdx.x; block < in.prepare_blocks; block += 32 * kWarps) {
      largest = larger(largest, in.largest_squares[which * in.prepare_blocks + block]);
    }
    largest = warp_max(largest);
    if (threadIdx.x % 32 == 0) partial[which][threadIdx.x / 32] = largest;
  }
  __syncthreads();
  for (int which = 0; which < 2; ++which) {
    squares[which] = 0;
    for (int warp = 0; warp < kWarps; ++warp) squares[which] = larger(squares[which], partial[which][warp]);
  }
}

// Block (x, y) searches split y of the columns for row block x.
template <class P, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 8 / kWarps) mine_pairs_kernel(const Arguments<P> in) {
  using T = typename P::Accumulator;
  using Search = PairSearch<P, kWarps>;
  using Gemm = typename Search::Gemm;
  DEEPCLUST_DYNAMIC_SHARED(shared);
  const int64_t first_row = int64_t{blockIdx.x} * Gemm::kRows;
  T squares[2];
  find_largest_squares<kWarps>(in, squares);
  const bool finite = squares[0] <= Limits<T>::kMax && squares[1] <= Limits<T>::kMax;
  if (finite) {
    Search search(in, first_row, sqrt(squares[0]), sqrt(squares[1]));
    const int tiles = static_cast<int>((in.count + Gemm::kColumns - 1) / Gemm::kColumns);
    const TileOperand<P> columns[2] = {in.operand(0), in.operand(1)};
    Gemm::run(in.operand(0), columns, in.row_depth, first_row,
              static_cast<int>(int64_t{tiles} * blockIdx.y / in.splits),
              static_cast<int>(int64_t{tiles} * (blockIdx.y + 1) / in.splits), shared, search);
    search.write_results(blockIdx.y);
  }
  if (!is_last_block(in.tickets + blockIdx.x, in.splits)) return;

  double sums[kHsdSums] = {};
  for (int slot = 0; slot < Search::kSlots; ++slot) {
    const int64_t i = first_row + Gemm::row_of(slot);
    const bool present = i < in.count;
    HardestPairs<T> pairs{};
    if (finite) {
      bool open = false;
      if (present) {
        pairs = HardestPairs<T>::start(i, in.value(kSelfSquared, i));
        open = !decide_by_candidates(in, i, pairs);
      }
      const unsigned open_rows = __ballot_sync(kWholeWarp, open && quad_lane() == 0);
      if (open_rows != 0) decide_by_all_columns(in, i, open_rows, pairs);
    }
    if (present && quad_lane() == 0) write_row(in, i, finite, pairs, sums);
  }
  if (in.out.loss.slope == nullptr) return;
  sum_over_block<kWarps>(sums);
  if (threadIdx.x == 0) {
    for (int k = 0; k < kHsdSums; ++k) in.sums[int64_t{blockIdx.x} * kHsdSums + k] = sums[k];
  }
  if (is_last_block(in.tickets + in.row_blocks, in.row_blocks)) finish_loss<kWarps>(in);
}

template <class P, int kWarps>
cudaError_t launch_kernels(const Arguments<P>& arguments, cudaStream_t stream) {
  const cudaError_t error = device::launch(prepare_rows_kernel<P>, dim3(arguments.prepare_blocks),
                                           dim3(kPrepareThreads), 0, stream, arguments);
  if (error != cudaSuccess) return error;
  return device::launch(mine_pairs_kernel<P, kWarps>, dim3(arguments.row_blocks, arguments.splits), dim3(32 * kWarps),
                        PairSearch<P, kWarps>::Gemm::kSharedBytes, stream, arguments);
}

template <class P>
cudaError_t launch_type(const MiningPlan& plan, const void* teacher, const void* student, bool normalize,
                        const MiningWorkspace& workspace, const MiningOutputs& outputs, cudaStream_t stream) {
  using A = Arguments<P>;
  using T = typename A::T;
  using Row = typename A::Row;
  A in{};
  in.input[0] = static_cast<const Row*>(teacher);
  in.input[1] = static_cast<const Row*>(student);
  for (int which = 0; which < 2; ++which) {
    in.rows[which] = static_cast<Row*>(workspace.rows) + which * plan.count * plan.row_depth;
  }
  if constexpr (P::kParts == 2) {
    for (int part = 0; part < 4; ++part) {
      in.split[part] = static_cast<typename P::Element*>(workspace.split_rows) + part * plan.count * plan.row_depth;
    }
  }
  in.values = static_cast<T*>(workspace.row_values);
  in.largest_squares = static_cast<T*>(workspace.largest_squares);
  in.candidates = static_cast<Candidate<T>*>(workspace.candidates);
  in.results = static_cast<SearchResult<T>*>(workspace.results);
  in.tickets = static_cast<unsigned*>(workspace.tickets);
  in.sums = static_cast<double*>(workspace.sums);
  in.out = outputs;
  in.count = plan.count;
  in.depth = plan.depth;
  in.row_depth = plan.row_depth;
  in.row_blocks = plan.row_blocks;
  in.splits = plan.splits;
  in.prepare_blocks = plan.prepare_blocks;
  in.normalize = normalize;
  return plan.warps == 8 ? launch_kernels<P, 8>(in, stream) : launch_kernels<P, 4>(in, stream);
}

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

}  // namespace

MiningPlan plan_mining(MiningType type, int64_t count, int64_t depth, int multiprocessors) {
  using SmallBlock = TileGemm<F32AsTf32x3, 4, 2>;
  using LargeBlock = TileGemm<F32AsTf32x3, 8, 2>;
  const int64_t stage_depth = type == MiningType::kF64                                ? TileGemm<F64, 4, 2>::kStageDepth
                              : type == MiningType::kBf16 || type == MiningType::kF16 ? TileGemm<F16, 4, 2>::kStageDepth
                                                                                      : SmallBlock::kStageDepth;
  // Large blocks load less per row, small ones are more. A multiprocessor holds three small blocks, or one large.
  const bool many_rows = divide_up(count, LargeBlock::kRows) >= multiprocessors;
  const int64_t row_blocks = divide_up(count, many_rows ? LargeBlock::kRows : SmallBlock::kRows);
  const int64_t room = int64_t{multiprocessors} * (many_rows ? 1 : 3) / row_blocks;
  const int64_t most = smaller<int64_t>(kMaxSplits, divide_up(count, SmallBlock::kColumns));
  return {type,
          count,
          depth,
          divide_up(depth, stage_depth) * stage_depth,
          many_rows ? 8 : 4,
          static_cast<int>(row_blocks),
          static_cast<int>(room < 1 ? 1 : smaller(room, most)),
          static_cast<int>(divide_up(count, kRowsPerPrepareBlock))};
}

MiningWorkspaceBytes mining_workspace_bytes(const MiningPlan& plan) {
  const bool wide = plan.type == MiningType::kF64;
  const int64_t accumulator = wide ? sizeof(double) : sizeof(float);
  const int64_t element = plan.type == MiningType::kBf16 || plan.type == MiningType::kF16 ? 2 : accumulator;
  const int64_t row_bytes = plan.count * plan.row_depth * element;
  return {{2 * row_bytes, plan.type == MiningType::kF32AsBf16x3 ? 2 * row_bytes : 0,
           kRowValues * plan.count * accumulator, 2 * plan.prepare_blocks * accumulator,
           plan.count * plan.splits * 2 * kMaxCandidates *
               static_cast<int64_t>(wide ? sizeof(Candidate<double>) : sizeof(Candidate<float>)),
           plan.count * plan.splits *
               static_cast<int64_t>(wide ? sizeof(SearchResult<double>) : sizeof(SearchResult<float>)),
           (plan.row_blocks + 1) * static_cast<int64_t>(sizeof(unsigned)),
           plan.row_blocks * kHsdSums * static_cast<int64_t>(sizeof(double))}};
}

cudaError_t launch_batch_hard_mining(const MiningPlan& plan, const void* teacher, const void* student, bool normalize,
                                     const MiningWorkspace& workspace, const MiningOutputs& outputs,
                                     cudaStream_t stream) {
  switch (plan.type) {
    case MiningType::kF32AsTf32x3:
      return launch_type<F32AsTf32x3>(plan, teacher, student, normalize, workspace, outputs, stream);
    case MiningType::kF32AsBf16x3:
      return launch_type<F32AsBf16x3>(plan, teacher, student, normalize, workspace, outputs, stream);
    case MiningType::kBf16:
      return launch_type<Bf16>(plan, teacher, student, normalize, workspace, outputs, stream);
    case MiningType::kF16:
      return launch_type<F16>(plan, teacher, student, normalize, workspace, outputs, stream);
    case MiningType::kF64:
      return launch_type<F64>(plan, teacher, student, normalize, workspace, outputs, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace deepclust

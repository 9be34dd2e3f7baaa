// Batch-hard mining without any N x N matrix.
//
// A thread block owns some rows and streams the columns by: products of its teacher rows with teacher columns (which
// tell negatives from positives) and with student columns (which order them), both on tensor cores. Products only rule
// columns out: a bound on their rounding says which columns can still be the hardest of a row, and these go on a short
// list. The last block of a row to finish decides among the listed columns by distances summed over squared
// differences, ties to the lowest index. So neither the precision of the products nor the order in which blocks run
// shows in the result, and float32 is multiplied in the fastest way that is precise enough, whatever torch may use for
// its own products. A row whose list overflows (nearly equal rows) is searched exactly, column by column.
//
// Work: 4 N^2 D operations on tensor cores, about ten more per pair, and a few exact distances per row; O(N D) memory.
#include "mining/cuda/batch_hard_mining.cuh"

#include <cmath>
#include <type_traits>

#include "core/constants.h"
#include "core/cuda/arithmetic.cuh"
#include "core/cuda/block.cuh"
#include "core/cuda/numeric.cuh"
#include "core/cuda/quad.cuh"
#include "core/cuda/tile_gemm.cuh"
#include "core/host_device.h"
#include "mining/cuda/mining_decision.cuh"
#include "mining/cuda/mining_rows.cuh"
#include "mining/cuda/mining_search.cuh"
#include "mining/hsd_row.h"

namespace deepclust {
namespace {

using namespace mining;

template <class T>
__device__ __forceinline__ T inverse_of(T squared, T distance) {
  return squared > T(kMinSquaredDistance) ? 1 / distance : T(0);
}

// Writes one row and adds it to the sums of the loss.
template <class P>
__device__ void write_row(const MiningArguments<P>& in, int64_t i, bool finite,
                          const HardestPairs<typename P::Accumulator>& pairs, double* sums /* (kHsdSums,) */) {
  using T = typename P::Accumulator;
  using Row = typename MiningArguments<P>::Row;
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

// Loss and statistics from the sums of all row blocks.
template <int kWarps, class P>
__device__ void finish_loss(const MiningArguments<P>& in) {
  using T = typename P::Accumulator;
  using Row = typename MiningArguments<P>::Row;
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

// Thread blocks that share a multiprocessor: as many as registers and shared memory (of sm_80 and sm_90) allow.
constexpr int blocks_per_multiprocessor(bool is_half, bool is_large) { return is_large ? 1 : is_half ? 3 : 2; }

template <class P, int kWarps>
constexpr int kMinBlocks = blocks_per_multiprocessor(sizeof(typename MiningArguments<P>::Row) == 2, kWarps == 8);

// Block (x, y) searches split y of the columns for row block x.
template <class P, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kMinBlocks<P, kWarps>) mine_pairs_kernel(const MiningArguments<P> in) {
  using T = typename P::Accumulator;
  using Search = PairSearch<P, kWarps>;
  using Gemm = typename Search::Gemm;
  DEEPCLUST_DYNAMIC_SHARED(shared);
  const int64_t first_row = in.first_row + int64_t{blockIdx.x} * Gemm::kRows;
  // Step 1: the largest squared norms, on which bounds of rounding depend; not finite if an input is not.
  T squares[2];
  for (int which = 0; which < 2; ++which) {
    squares[which] = largest_of<kWarps>(in.largest_squares + which * in.prepare_blocks, in.prepare_blocks);
  }
  const bool finite = squares[0] <= Limits<T>::kMax && squares[1] <= Limits<T>::kMax;
  // Step 2: lists of the columns of this split that can win.
  if (finite) {
    Search search(in, first_row, sqrt(squares[0]), sqrt(squares[1]));
    const int tiles = static_cast<int>(divide_up(in.count, Gemm::kColumns));
    const TileOperand<P> columns[2] = {in.operand(0), in.operand(1)};
    Gemm::run(in.operand(0), columns, in.row_depth, first_row,
              static_cast<int>(int64_t{tiles} * blockIdx.y / in.splits),
              static_cast<int>(int64_t{tiles} * (blockIdx.y + 1) / in.splits), shared, search);
    search.write_results(blockIdx.y);
  }
  // Step 3: whichever block is last of a row block decides its pairs, by the lists or, if these were too short, by all
  // columns.
  if (!is_last_block(in.tickets + blockIdx.x, in.splits)) return;
  double sums[kHsdSums] = {};
  for (int slot = 0; slot < Search::kSlots; ++slot) {
    const int64_t i = first_row + Gemm::row_of(slot);
    const bool present = i < in.end_row;
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
  // Step 4, of the loss: sums of the row block, which the very last block adds up.
  if (in.out.loss.slope == nullptr) return;
  sum_over_block<kWarps>(sums);
  if (threadIdx.x == 0) {
    for (int k = 0; k < kHsdSums; ++k) in.sums[int64_t{blockIdx.x} * kHsdSums + k] = sums[k];
  }
  if (is_last_block(in.tickets + in.row_blocks, in.row_blocks)) finish_loss<kWarps>(in);
}

template <class P, int kWarps>
cudaError_t launch_kernels(const MiningArguments<P>& arguments, cudaStream_t stream) {
  const cudaError_t error = device::launch(prepare_rows_kernel<P>, dim3(arguments.prepare_blocks),
                                           dim3(kPrepareThreads), 0, stream, arguments);
  if (error != cudaSuccess) return error;
  return device::launch(mine_pairs_kernel<P, kWarps>, dim3(arguments.row_blocks, arguments.splits), dim3(32 * kWarps),
                        PairSearch<P, kWarps>::Gemm::kSharedBytes, stream, arguments);
}

template <class P>
cudaError_t launch_type(const MiningPlan& plan, const void* teacher, const void* student, bool normalize,
                        const MiningWorkspace& workspace, const MiningOutputs& outputs, cudaStream_t stream) {
  using A = MiningArguments<P>;
  using T = typename A::T;
  using Row = typename A::Row;
  A in{};
  in.input[0] = static_cast<const Row*>(teacher);
  in.input[1] = static_cast<const Row*>(student);
  for (int which = 0; which < 2; ++which) {
    in.rows[which] = static_cast<Row*>(workspace.field[kMiningRows]) + which * plan.count * plan.row_depth;
  }
  if constexpr (P::kParts == 2) {
    for (int part = 0; part < 4; ++part) {
      in.split[part] =
          static_cast<typename P::Element*>(workspace.field[kMiningSplitRows]) + part * plan.count * plan.row_depth;
    }
  }
  in.values = static_cast<T*>(workspace.field[kMiningRowValues]);
  in.largest_squares = static_cast<T*>(workspace.field[kMiningLargestSquares]);
  in.candidates = static_cast<Candidate<T>*>(workspace.field[kMiningCandidates]);
  in.results = static_cast<SearchResult<T>*>(workspace.field[kMiningResults]);
  in.tickets = static_cast<unsigned*>(workspace.field[kMiningTickets]);
  in.sums = static_cast<double*>(workspace.field[kMiningSums]);
  in.out = outputs;
  in.count = plan.count;
  in.depth = plan.depth;
  in.row_depth = plan.row_depth;
  in.first_row = plan.first_row;
  in.end_row = plan.end_row;
  in.row_blocks = plan.row_blocks;
  in.splits = plan.splits;
  in.prepare_blocks = plan.prepare_blocks;
  in.normalize = normalize;
  return plan.warps == 8 ? launch_kernels<P, 8>(in, stream) : launch_kernels<P, 4>(in, stream);
}

}  // namespace

MiningPlan plan_mining(ElementType type, int64_t count, int64_t depth, int64_t first_row, int64_t end_row,
                       int multiprocessors) {
  using SmallBlock = TileGemm<F32AsF16x3, 4, 2>;
  using LargeBlock = TileGemm<F32AsF16x3, 8, 2>;
  const int64_t stage_depth = type == ElementType::kF64   ? TileGemm<F64, 4, 2>::kStageDepth
                              : type == ElementType::kF32 ? SmallBlock::kStageDepth
                                                          : TileGemm<F16, 4, 2>::kStageDepth;
  // Large blocks load less for each product, small ones are more; a few splits of large blocks fill the device.
  const int64_t anchors = end_row - first_row;
  const bool many_rows = divide_up(anchors, LargeBlock::kRows) >= larger(3, multiprocessors / 5);
  const int64_t row_blocks = divide_up(anchors, many_rows ? LargeBlock::kRows : SmallBlock::kRows);
  const bool is_half = type == ElementType::kBf16 || type == ElementType::kF16;
  const int64_t room = int64_t{multiprocessors} * blocks_per_multiprocessor(is_half, many_rows) / row_blocks;
  const int64_t most = smaller<int64_t>(kMaxSplits, divide_up(count, SmallBlock::kColumns));
  MiningPlan plan{};
  plan.type = type;
  plan.count = count;
  plan.depth = depth;
  plan.first_row = first_row;
  plan.end_row = end_row;
  plan.row_depth = round_up(depth, stage_depth);
  plan.warps = many_rows ? 8 : 4;
  plan.row_blocks = static_cast<int>(row_blocks);
  plan.splits = static_cast<int>(room < 1 ? 1 : smaller(room, most));
  plan.prepare_blocks = static_cast<int>(divide_up(count, kRowsPerPrepareBlock));
  return plan;
}

MiningBytes mining_bytes(const MiningPlan& plan) {
  const bool is_f64 = plan.type == ElementType::kF64;
  const int64_t accumulator = accumulator_bytes(plan.type), parts = plan.count * plan.splits;
  const int64_t row_bytes = plan.count * plan.row_depth * element_bytes(plan.type);
  const int64_t candidate = is_f64 ? sizeof(Candidate<double>) : sizeof(Candidate<float>);
  const int64_t result = is_f64 ? sizeof(SearchResult<double>) : sizeof(SearchResult<float>);
  MiningBytes bytes{};
  bytes.field[kMiningRows] = 2 * row_bytes;
  bytes.field[kMiningSplitRows] = plan.type == ElementType::kF32 ? 2 * row_bytes : 0;
  bytes.field[kMiningRowValues] = kRowValues * plan.count * accumulator;
  bytes.field[kMiningLargestSquares] = 2 * plan.prepare_blocks * accumulator;
  bytes.field[kMiningCandidates] = parts * 2 * kMaxCandidates * candidate;
  bytes.field[kMiningResults] = parts * result;
  bytes.field[kMiningTickets] = (plan.row_blocks + 1) * static_cast<int64_t>(sizeof(unsigned));
  bytes.field[kMiningSums] = plan.row_blocks * kHsdSums * static_cast<int64_t>(sizeof(double));
  return bytes;
}

cudaError_t launch_batch_hard_mining(const MiningPlan& plan, const void* teacher, const void* student, bool normalize,
                                     const MiningWorkspace& workspace, const MiningOutputs& outputs,
                                     cudaStream_t stream) {
  return for_arithmetic<F32AsF16x3>(plan.type, [&](auto arithmetic) {
    return launch_type<decltype(arithmetic)>(plan, teacher, student, normalize, workspace, outputs, stream);
  });
}

}  // namespace deepclust

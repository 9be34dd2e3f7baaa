// The k nearest rows of a bank by cosine, without any B x M matrix.
//
// A thread block owns some queries and streams a slice of the bank by; the products, on tensor cores, never leave
// registers. Per query and slice there is a list: rows with a score above a threshold are appended, and when it is full
// its warp counts what the k-th best score is, raises the threshold and drops what can no longer be among the k best. A
// bound on the rounding of a score says what that is, so products only rule rows out. The last kernel takes what is
// left of a query's lists, some more than k rows, computes their cosines in float64 and sorts these, rounded once, ties
// to the lowest index. So neither the precision of the products nor the order in which blocks run shows in the result,
// unless hundreds of rows are equally near to the rounding of a product; then scores decide which of them are compared.
// Equal rows have equal scores, so that of these it is always the lowest indices that stay.
//
// Work: 2 B M D operations on tensor cores, about three more per pair, some k log(M) list entries per query and slice.
// Memory: a copy of both inputs as the products read them, and the lists, O(k) each.
#include "neighbors/cuda/nearest_neighbors.cuh"

#include "core/cuda/arithmetic.cuh"
#include "core/cuda/numeric.cuh"
#include "core/cuda/tile_gemm.cuh"
#include "core/host_device.h"
#include "neighbors/cuda/neighbors_result.cuh"
#include "neighbors/cuda/neighbors_rows.cuh"
#include "neighbors/cuda/neighbors_search.cuh"

namespace deepclust {
namespace {

using namespace neighbors;

// Thread blocks that share a multiprocessor: as many as registers and shared memory (of sm_80 and sm_90) allow.
constexpr int search_blocks(bool is_half, bool is_large) { return is_large ? 1 : is_half ? 3 : 2; }

template <class P, int kWarps>
constexpr int kMinSearchBlocks = search_blocks(sizeof(typename RowElementOf<P>::type) == 2, kWarps == 8);

// Block (x, y) searches slice y of the bank for row block x.
template <class P, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kMinSearchBlocks<P, kWarps>)
    neighbors_search_kernel(const NeighborsArguments<P> in) {
  using Search = NeighborSearch<P, kWarps>;
  using Gemm = typename Search::Gemm;
  DEEPCLUST_DYNAMIC_SHARED(shared);
  const int64_t first_row = int64_t{blockIdx.x} * Gemm::kRows;
  Search search(in, first_row);
  const int64_t tiles = divide_up(in.count[kBank], Gemm::kColumns);
  const TileOperand<P> columns[1] = {in.operand(kBank)};
  Gemm::run(in.operand(kQuery), columns, in.row_depth, first_row, static_cast<int>(tiles * blockIdx.y / in.splits),
            static_cast<int>(tiles * (blockIdx.y + 1) / in.splits), shared, search);
  search.write_counts(blockIdx.y);
}

template <class P, int kWarps>
cudaError_t launch_kernels(const NeighborsPlan& plan, const NeighborsArguments<P>& arguments, cudaStream_t stream) {
  cudaError_t error = device::memset_async(arguments.bad_rows, 0, sizeof(unsigned), stream);
  if (error != cudaSuccess) return error;
  const int64_t prepare_blocks = divide_up(plan.queries + plan.bank_rows, kRowsPerPrepareBlock);
  error = device::launch(neighbors_prepare_kernel<P>, dim3(static_cast<unsigned>(prepare_blocks)),
                         dim3(kPrepareThreads), 0, stream, arguments);
  if (error != cudaSuccess) return error;
  error = device::launch(neighbors_search_kernel<P, kWarps>, dim3(plan.row_blocks, plan.splits), dim3(32 * kWarps),
                         NeighborSearch<P, kWarps>::Gemm::kSharedBytes, stream, arguments);
  if (error != cudaSuccess) return error;
  return device::launch(neighbors_result_kernel<P>, dim3(static_cast<unsigned>(plan.queries)), dim3(kResultThreads), 0,
                        stream, arguments);
}

template <class P>
cudaError_t launch_type(const NeighborsPlan& plan, const NeighborsInputs& inputs, const NeighborsWorkspace& workspace,
                        void* cosines, int64_t* indices, cudaStream_t stream) {
  using A = NeighborsArguments<P>;
  A in{};
  in.input[kQuery] = static_cast<const typename A::Row*>(inputs.query);
  in.input[kBank] = static_cast<const typename A::Row*>(inputs.bank);
  in.rows[kQuery] = static_cast<typename A::Element*>(workspace.field[kNeighborsQueryRows]);
  in.rows[kBank] = static_cast<typename A::Element*>(workspace.field[kNeighborsBankRows]);
  in.count[kQuery] = plan.queries;
  in.count[kBank] = plan.bank_rows;
  in.exclude = inputs.exclude;
  in.valid = inputs.valid;
  in.query_norms = static_cast<typename A::T*>(workspace.field[kNeighborsQueryNorms]);
  in.bank_scales = static_cast<typename A::T*>(workspace.field[kNeighborsBankScales]);
  in.lists = static_cast<Candidate<typename A::T>*>(workspace.field[kNeighborsLists]);
  in.counts = static_cast<int*>(workspace.field[kNeighborsCounts]);
  in.bad_rows = static_cast<unsigned*>(workspace.field[kNeighborsBadRows]);
  in.cosines = static_cast<typename A::Row*>(cosines);
  in.indices = indices;
  in.depth = plan.depth;
  in.row_depth = plan.row_depth;
  in.neighbors = plan.neighbors;
  in.capacity = plan.capacity;
  in.splits = plan.splits;
  return plan.warps == 8 ? launch_kernels<P, 8>(plan, in, stream) : launch_kernels<P, 4>(plan, in, stream);
}

}  // namespace

NeighborsPlan plan_nearest_neighbors(ElementType type, int64_t queries, int64_t bank_rows, int64_t depth, int neighbors,
                                     int multiprocessors) {
  return for_arithmetic<F32AsF16x3>(type, [&](auto arithmetic) {
    using P = decltype(arithmetic);
    using SmallBlock = typename NeighborSearch<P, 4>::Gemm;
    using LargeBlock = typename NeighborSearch<P, 8>::Gemm;
    const int64_t tiles = divide_up(bank_rows, SmallBlock::kColumns);
    // Large blocks load less for each product; small ones waste less where queries are few, and are more.
    const int64_t large_blocks = divide_up(queries, LargeBlock::kRows);
    const bool many_rows = queries > SmallBlock::kRows && large_blocks * tiles >= multiprocessors;
    const int64_t row_blocks = many_rows ? large_blocks : divide_up(queries, SmallBlock::kRows);
    const int64_t room =
        int64_t{multiprocessors} * (many_rows ? kMinSearchBlocks<P, 8> : kMinSearchBlocks<P, 4>) / row_blocks;
    NeighborsPlan plan{};
    plan.type = type;
    plan.queries = queries;
    plan.bank_rows = bank_rows;
    plan.depth = depth;
    plan.row_depth = round_up(depth, SmallBlock::kStageDepth);
    plan.neighbors = neighbors;
    // Room for a tile and, when that has been made, for near ties; the more, the more rarely it has to be made.
    plan.capacity = SmallBlock::kColumns + 2 * neighbors + 64;
    plan.warps = many_rows ? 8 : 4;
    plan.row_blocks = static_cast<int>(row_blocks);
    plan.splits = static_cast<int>(larger<int64_t>(1, smaller(room, tiles)));
    return plan;
  });
}

NeighborsBytes neighbors_bytes(const NeighborsPlan& plan) {
  return for_arithmetic<F32AsF16x3>(plan.type, [&](auto arithmetic) {
    using P = decltype(arithmetic);
    using T = typename P::Accumulator;
    const int64_t row_bytes = P::kParts * plan.row_depth * static_cast<int64_t>(sizeof(typename P::Element));
    const int64_t lists = plan.queries * plan.splits;
    NeighborsBytes bytes{};
    bytes.field[kNeighborsQueryRows] = plan.queries * row_bytes;
    bytes.field[kNeighborsBankRows] = plan.bank_rows * row_bytes;
    bytes.field[kNeighborsQueryNorms] = plan.queries * static_cast<int64_t>(sizeof(T));
    bytes.field[kNeighborsBankScales] = plan.bank_rows * static_cast<int64_t>(sizeof(T));
    bytes.field[kNeighborsLists] = lists * plan.capacity * static_cast<int64_t>(sizeof(Candidate<T>));
    bytes.field[kNeighborsCounts] = lists * static_cast<int64_t>(sizeof(int));
    bytes.field[kNeighborsBadRows] = static_cast<int64_t>(sizeof(unsigned));
    return bytes;
  });
}

cudaError_t launch_nearest_neighbors(const NeighborsPlan& plan, const NeighborsInputs& inputs,
                                     const NeighborsWorkspace& workspace, void* cosines, int64_t* indices,
                                     cudaStream_t stream) {
  return for_arithmetic<F32AsF16x3>(plan.type, [&](auto arithmetic) {
    return launch_type<decltype(arithmetic)>(plan, inputs, workspace, cosines, indices, stream);
  });
}

}  // namespace deepclust

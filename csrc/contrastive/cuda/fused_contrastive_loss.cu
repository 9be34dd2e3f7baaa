// The contrastive loss without any N x N matrix, in both directions.
//
// Forward: a thread block owns some anchors and streams the columns by; their scores come from tensor cores, and only
// the sums of their exponentials are kept, relative to a running maximum where scores are so large that exponentials
// could overflow. Backward: the scores are computed again and multiplied, as weights, with the columns in the same
// kernel. Positive pairs are left out of both and added apart.
//
// Work: N M (D + K) multiply-adds forward, two to three times that backward; O(N (D + K)) memory.
#include "contrastive/cuda/fused_contrastive_loss.cuh"

#include <type_traits>

#include "contrastive/cuda/contrastive_backward.cuh"
#include "contrastive/cuda/contrastive_finish.cuh"
#include "contrastive/cuda/contrastive_forward.cuh"
#include "contrastive/cuda/contrastive_rows.cuh"
#include "core/host_device.h"

namespace deepclust {
namespace {

using namespace contrastive;

// Calls visit with the products' type.
template <class Visit>
auto for_products(ContrastiveProducts products, Visit&& visit) {
  switch (products) {
    case ContrastiveProducts::kTf32:
      return visit(F32AsTf32());
    case ContrastiveProducts::kF16:
      return visit(F16());
    case ContrastiveProducts::kBf16:
      return visit(Bf16());
    case ContrastiveProducts::kF64:
      return visit(F64());
    case ContrastiveProducts::kF16x3:
      break;
  }
  return visit(F32AsF16x3());
}

ContrastiveProducts products_of(const ContrastiveInputs& inputs) {
  if (inputs.type == ElementType::kF64) return ContrastiveProducts::kF64;
  if (inputs.type == ElementType::kF32) {
    return inputs.reduced_precision ? ContrastiveProducts::kTf32 : ContrastiveProducts::kF16x3;
  }
  if (inputs.classes > 0) return ContrastiveProducts::kF16x3;
  return inputs.type == ElementType::kF16 ? ContrastiveProducts::kF16 : ContrastiveProducts::kBf16;
}

ContrastivePlan plan_rows(const ContrastiveInputs& inputs) {
  ContrastivePlan plan{};
  plan.products = products_of(inputs);
  plan.rows = 2 * inputs.batch + inputs.queue;
  const int64_t stage_depth =
      for_products(plan.products, [](auto p) -> int64_t { return TileGemm<decltype(p), 4, 1>::kStageDepth; });
  plan.row_depth = round_up(inputs.depth + inputs.classes, stage_depth);
  plan.prepare_blocks = static_cast<int>(divide_up(inputs.batch + inputs.queue, kRowsPerPrepareBlock));
  return plan;
}

// `room`: thread blocks that the device runs at once.
ContrastiveBlocks plan_blocks(int64_t first_row, int64_t count, int64_t first_column, int64_t columns,
                              int64_t rows_per_block, int64_t room) {
  constexpr int kColumns = TileGemm<F32AsF16x3, 4, 1>::kColumns;
  const int64_t row_blocks = divide_up(count, rows_per_block);
  const int64_t most = smaller<int64_t>(kMaxSplits, divide_up(columns, kColumns));
  return {first_row,
          count,
          first_column,
          columns,
          static_cast<int>(row_blocks),
          static_cast<int>(larger<int64_t>(1, smaller(room / row_blocks, most)))};
}

template <class P>
ContrastiveArguments<P> packed_arguments(const ContrastiveInputs& inputs, const ContrastivePlan& plan,
                                         const ContrastiveWorkspace& workspace) {
  using T = typename P::Accumulator;
  ContrastiveArguments<P> in{};
  for (int part = 0; part < P::kParts; ++part) {
    in.part[part] = static_cast<typename P::Element*>(workspace.field[kRows]) + part * plan.rows * plan.row_depth;
  }
  in.scale = static_cast<T*>(workspace.field[kScale]);
  in.inverse_norm = static_cast<T*>(workspace.field[kInverseNorm]);
  in.positive = static_cast<T*>(workspace.field[kPositiveScores]);
  in.largest_squares = static_cast<T*>(workspace.field[kLargestSquares]);
  in.batch = inputs.batch;
  in.rows = plan.rows;
  in.row_depth = plan.row_depth;
  in.anchors = inputs.anchors();
  const double hardness = inputs.options.hardness;
  in.growth = static_cast<T>(1 + hardness);
  // Above 0 where it is, so that a weight's exponent is still minus infinity where the score is.
  in.hardness = hardness > 0 ? larger(static_cast<T>(hardness), Limits<T>::kTiny) : T(0);
  in.max_growth = 1 + hardness;
  in.prepare_blocks = plan.prepare_blocks;
  in.two_views = inputs.two_views;
  in.weighted = hardness > 0;
  return in;
}

// Calls run with the type of the inputs, one of those that go with the products.
template <class P, class Run>
cudaError_t for_input_type(ElementType type, Run&& run) {
  if constexpr (P::kParts == 2) {
    if (type == ElementType::kF16) return run(__half());
    if (type == ElementType::kBf16) return run(__nv_bfloat16());
    return run(float());
  } else {
    return run(typename P::Element());
  }
}

template <class P>
cudaError_t launch_prepare(const ContrastiveInputs& inputs, const ContrastiveArguments<P>& packed,
                           const ContrastiveGradientArguments<typename P::Accumulator>& gradient, unsigned* tickets,
                           int ticket_count, cudaStream_t stream) {
  return for_input_type<P>(inputs.type, [&](auto input) {
    return device::launch(prepare_kernel<P, decltype(input)>, dim3(packed.prepare_blocks), dim3(kPrepareThreads), 0,
                          stream, packed, inputs, gradient, tickets, ticket_count);
  });
}

// With 8 warps; of float64 they would need more registers than there are.
template <class P>
constexpr bool kHasLargeBlocks = !std::is_same<typename P::Element, double>::value;

template <class P, int kWarps>
cudaError_t launch_sum_exps(const ContrastiveLossArguments<P>& in, cudaStream_t stream) {
  return device::launch(sum_exps_kernel<P, kWarps>, dim3(in.row_blocks, in.splits), dim3(32 * kWarps),
                        SumExps<P, kWarps>::Gemm::kSharedBytes, stream, in);
}

template <class P>
cudaError_t launch_loss(const ContrastiveInputs& inputs, const ContrastivePlan& plan,
                        const ContrastiveWorkspace& workspace, LossReduction reduction, void* loss, void* row_values,
                        cudaStream_t stream) {
  using T = typename P::Accumulator;
  const ContrastiveBlocks& blocks = plan.blocks[0];
  ContrastiveLossArguments<P> in{};
  in.packed = packed_arguments<P>(inputs, plan, workspace);
  in.partial = static_cast<ExpSums<T>*>(workspace.field[kPartialSums]);
  in.tickets = static_cast<unsigned*>(workspace.field[kTickets]);
  in.sums = static_cast<double*>(workspace.field[kLossSums]);
  in.row_values = static_cast<T*>(row_values);
  in.loss = loss;
  in.type = inputs.type;
  in.reduction = reduction;
  in.options = inputs.options;
  in.first_column = blocks.first_column;
  in.columns = blocks.columns;
  in.row_blocks = blocks.row_blocks;
  in.splits = blocks.splits;
  const cudaError_t error = launch_prepare<P>(inputs, in.packed, {}, in.tickets, blocks.row_blocks + 1, stream);
  if (error != cudaSuccess) return error;
  if constexpr (kHasLargeBlocks<P>) {
    if (plan.warps == 8) return launch_sum_exps<P, 8>(in, stream);
  }
  return launch_sum_exps<P, 4>(in, stream);
}

template <class P>
cudaError_t launch_gradient(const ContrastiveInputs& inputs, const ContrastivePlan& plan,
                            const ContrastiveWorkspace& workspace, const ContrastiveGradients& gradients,
                            cudaStream_t stream) {
  using T = typename P::Accumulator;
  ContrastiveFinishArguments<P> finish{};
  finish.packed = packed_arguments<P>(inputs, plan, workspace);
  auto* anchor_values = static_cast<T*>(workspace.field[kAnchorValues]);
  finish.anchor_values = anchor_values;
  for (int input = 0; input < kContrastiveInputs; ++input) finish.gradient[input] = gradients.gradient[input];
  const ContrastiveGradientArguments<T> gradient{gradients.grad_loss, gradients.grad_stride,
                                                 static_cast<T>(gradients.factor),
                                                 static_cast<const T*>(gradients.row_values), anchor_values};
  cudaError_t error = launch_prepare<P>(inputs, finish.packed, gradient, nullptr, 0, stream);
  for (int pass = 0; pass < plan.passes && error == cudaSuccess; ++pass) {
    const ContrastiveBlocks& blocks = plan.blocks[pass];
    ContrastiveOwnerArguments<P> in{};
    in.packed = finish.packed;
    in.anchor_values = anchor_values;
    in.sums = static_cast<T*>(workspace.field[pass == 0 ? kGradientSums : kQueueSums]);
    in.first_row = blocks.first_row;
    in.count = blocks.count;
    in.first_column = blocks.first_column;
    in.columns = blocks.columns;
    in.splits = blocks.splits;
    in.first_chunk = plan.first_chunk;
    in.rows_are_anchors = blocks.first_row < in.packed.anchors;
    in.columns_are_anchors = blocks.first_column < in.packed.anchors;
    finish.owners[pass] = {in.sums, blocks.first_row, blocks.count, blocks.splits};
    error = device::launch(sum_over_columns_kernel<P>,
                           dim3(blocks.row_blocks, blocks.splits, plan.last_chunk - plan.first_chunk),
                           dim3(32 * kOwnerWarps), SumOverColumns<P>::kSharedBytes, stream, in);
  }
  if (error != cudaSuccess) return error;
  return for_input_type<P>(inputs.type, [&](auto input) {
    return device::launch(finish_gradient_kernel<P, decltype(input)>,
                          dim3(static_cast<unsigned>(divide_up(plan.rows, kRowsPerFinishBlock))), dim3(kFinishThreads),
                          0, stream, finish, inputs);
  });
}

}  // namespace

ContrastivePlan plan_contrastive_loss(const ContrastiveInputs& inputs, int multiprocessors) {
  ContrastivePlan plan = plan_rows(inputs);
  const int64_t anchors = inputs.anchors();
  // Large blocks load less for each product, but there are fewer of them. With many rows they still fill the device.
  const bool many_rows = divide_up(anchors, 128) >= larger(3, multiprocessors / 5);
  int blocks_per_multiprocessor = 0;
  for_products(plan.products, [&](auto p) {
    using P = decltype(p);
    plan.warps = many_rows && kHasLargeBlocks<P> ? 8 : 4;
    blocks_per_multiprocessor = plan.warps == 8 ? kForwardBlocks<P, 8> : kForwardBlocks<P, 4>;
  });
  plan.passes = 1;
  plan.blocks[0] =
      plan_blocks(0, anchors, inputs.two_views ? 0 : 2 * inputs.batch, inputs.two_views ? anchors : inputs.queue,
                  16 * plan.warps, int64_t{multiprocessors} * blocks_per_multiprocessor);
  return plan;
}

// Plans the passes of the backward pass. In a pass, each row of a range owns a gradient, and a thread block sums it
// over a part of the columns (a split), for one chunk of the elements of a packed row.
ContrastivePlan plan_contrastive_gradient(const ContrastiveInputs& inputs, const bool (&wanted)[kContrastiveInputs],
                                          int multiprocessors) {
  ContrastivePlan plan = plan_rows(inputs);
  const int64_t batch = inputs.batch,
                features = for_products(plan.products, [](auto p) -> int64_t { return kChunkFeatures<decltype(p)>; });
  // Step 1: which chunks of a packed row's elements need a gradient. Features come first, then class vectors.
  const bool want_features = wanted[0] || wanted[1] || wanted[4], want_classes = wanted[2] || wanted[3] || wanted[5];
  plan.first_chunk = static_cast<int>(want_features ? 0 : inputs.depth / features);
  plan.last_chunk = static_cast<int>(divide_up(inputs.depth + (want_classes ? inputs.classes : 0), features));
  // Step 2: how many thread blocks the device runs at once, for each of these chunks.
  const int64_t room =
      int64_t{multiprocessors} * kBackwardBlocksPerMultiprocessor / (plan.last_chunk - plan.first_chunk);
  // Adds a pass: `count` rows from `first_row` on own gradients, which are sums over `columns` columns.
  const auto add_pass = [&](int64_t first_row, int64_t count, int64_t first_column, int64_t columns) {
    if (count == 0 || columns == 0) return;
    plan.blocks[plan.passes++] = plan_blocks(first_row, count, first_column, columns, 16 * kOwnerWarps, room);
  };
  // Step 3: the passes. With two views there is one: the rows of the wanted views, over all rows. With a queue there
  // are up to two: the anchors over the queue, and the queue over the anchors.
  const bool want_a = wanted[0] || wanted[2], want_b = wanted[1] || wanted[3], want_queue = wanted[4] || wanted[5];
  if (inputs.two_views) {
    if (inputs.options.negatives > 0) {
      add_pass(want_a ? 0 : batch, (want_a + want_b) * batch, 0, 2 * batch);
    }
  } else {
    if (want_a) add_pass(0, batch, 2 * batch, inputs.queue);
    if (want_queue) add_pass(2 * batch, inputs.queue, 0, batch);
  }
  return plan;
}

ContrastiveBytes contrastive_bytes(const ContrastiveInputs& inputs, const ContrastivePlan& plan, bool backward) {
  const int64_t element = for_products(
      plan.products, [](auto p) -> int64_t { return decltype(p)::kParts * sizeof(typename decltype(p)::Element); });
  const int64_t accumulator = accumulator_bytes(inputs.type);
  ContrastiveBytes bytes{};
  bytes.field[kRows] = plan.rows * plan.row_depth * element;
  bytes.field[kScale] = bytes.field[kInverseNorm] = plan.rows * accumulator;
  bytes.field[kPositiveScores] = inputs.batch * accumulator;
  bytes.field[kLargestSquares] = plan.prepare_blocks * accumulator;
  if (backward) {
    bytes.field[kAnchorValues] = kContrastiveValues * inputs.anchors() * accumulator;
    for (int pass = 0; pass < plan.passes; ++pass) {
      bytes.field[pass == 0 ? kGradientSums : kQueueSums] =
          plan.blocks[pass].splits * plan.blocks[pass].count * plan.row_depth * accumulator;
    }
  } else {
    const ContrastiveBlocks& blocks = plan.blocks[0];
    bytes.field[kPartialSums] = 3 * blocks.splits * inputs.anchors() * accumulator;
    bytes.field[kTickets] = (blocks.row_blocks + 1) * static_cast<int64_t>(sizeof(unsigned));
    bytes.field[kLossSums] = blocks.row_blocks * static_cast<int64_t>(sizeof(double));
  }
  return bytes;
}

cudaError_t launch_fused_contrastive_loss(const ContrastiveInputs& inputs, const ContrastivePlan& plan,
                                          const ContrastiveWorkspace& workspace, LossReduction reduction, void* loss,
                                          void* row_values, cudaStream_t stream) {
  return for_products(plan.products, [&](auto p) {
    return launch_loss<decltype(p)>(inputs, plan, workspace, reduction, loss, row_values, stream);
  });
}

cudaError_t launch_fused_contrastive_loss_backward(const ContrastiveInputs& inputs, const ContrastivePlan& plan,
                                                   const ContrastiveWorkspace& workspace,
                                                   const ContrastiveGradients& gradients, cudaStream_t stream) {
  return for_products(plan.products,
                      [&](auto p) { return launch_gradient<decltype(p)>(inputs, plan, workspace, gradients, stream); });
}

}  // namespace deepclust

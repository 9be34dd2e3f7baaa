// pair_information and pair_statistics, a block of pairs at a time. Its logits, of both rows of the pairs, are products
// (pairs_product.cuh). Then a thread block for each row or pair reads them a few times, mostly from the caches, and
// leaves the gradient, or the shares, in their place (pairs_rows.cuh). These are multiplied, or added up by columns.
//
// All sums have an order that depends on the sizes and the device alone, and no float is added by an atomic. The logits
// of a block stay in the second cache of a large device, and give all its multiprocessors work.
#include "pairs/cuda/pair_information.cuh"

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/cuda/element_type.cuh"
#include "core/cuda/numeric.cuh"
#include "core/host_device.h"
#include "pairs/cuda/pairs_product.cuh"
#include "pairs/cuda/pairs_rows.cuh"

namespace deepclust {
namespace {

using namespace pairs;

constexpr int kThreads = 32 * kManyWarps;
constexpr int64_t kLogitsPerMultiprocessor = 1 << 14;  // of one matrix
// Of columns: a warp adds up eight rows at least, and a thread of the next kernel so many parts at most.
constexpr int64_t kMinPartRows = 64, kMaxRowParts = 256;

template <class T>
T* field_of(const PairWorkspace& workspace, PairField field) {
  return static_cast<T*>(workspace.field[field]);
}

dim3 blocks_of(int64_t elements, int64_t by) { return dim3(static_cast<unsigned>(divide_up(elements, by))); }

// Of kernels that fill results, whose threads take several elements if there are many.
dim3 filling_blocks(int64_t elements) {
  return blocks_of(smaller<int64_t>(larger<int64_t>(elements, 1), 1 << 20), kThreads);
}

int64_t column_part_rows(const PairPlan& plan) {
  return larger(kMinPartRows, divide_up(2 * plan.block_pairs, kMaxRowParts));
}

// Calls run with the number of warps that work on a row, as a type.
template <class Run>
cudaError_t for_warps(int64_t clusters, const Run& run) {
  return clusters <= kOneWarpClusters ? run(std::integral_constant<int, 1>())
                                      : run(std::integral_constant<int, kManyWarps>());
}

// Logits over the temperature of some pairs' rows, of one or two heads. The power of two in 1 / temperature goes to
// the rows, so that what is too large for T is so before and after, and the rest, in double, to the products.
template <class Element>
cudaError_t launch_logits(const void* const (&rows)[2], const void* const (&weights)[2], int heads, const Lines& lines,
                          int64_t clusters, int64_t depth, double temperature, int multiprocessors,
                          Widened<Element>* const (&logits)[2], cudaStream_t stream) {
  using T = Widened<Element>;
  const int exponent = std::ilogb(1 / temperature);
  Product<Element, Element> product{};
  product.left = Matrix<Element>::of(rows[0], lines, depth, rows[1]);
  product.right = Matrix<Element>::of(weights[0], Lines::all(clusters), depth, weights[1]);
  product.result = {
      {logits[0], logits[1]}, Lines::all(lines.count), clusters, std::ldexp(1 / temperature, -exponent), false};
  product.scale = static_cast<T>(std::ldexp(1.0, exponent));
  product.depth = depth;
  return launch_product<true, true>(product, heads, multiprocessors, static_cast<T*>(nullptr), stream);
}

template <class Element>
cudaError_t launch_information(const PairInformationInputs& inputs, const PairPlan& plan,
                               const PairWorkspace& workspace, void* information_output, void* grad_rows_output,
                               void* grad_weight_output, cudaStream_t stream) {
  using T = Widened<Element>;
  const int64_t clusters = inputs.clusters, depth = inputs.depth, rows = 2 * inputs.pairs;
  T* const logits[2] = {field_of<T>(workspace, kPairLogits), field_of<T>(workspace, kPairTeacherLogits)};
  T* const parts = field_of<T>(workspace, kPairPartSums);
  T* const log_shares = field_of<T>(workspace, kPairLogShares);
  T* const pair_weights = field_of<T>(workspace, kPairWeights);
  double* const values = field_of<double>(workspace, kPairRowValues);
  auto* const invalid = field_of<unsigned>(workspace, kPairInvalid);
  auto* const grad_rows = static_cast<T*>(grad_rows_output);
  auto* const grad_weight = static_cast<T*>(grad_weight_output);

  cudaError_t error = device::memset_async(invalid, 0, sizeof(unsigned), stream);
  if (error != cudaSuccess) return error;
  error = device::memset_async(grad_weight, 0, clusters * depth * sizeof(T), stream);
  if (error != cudaSuccess) return error;
  error =
      device::launch(widen_shares_kernel<Element>, blocks_of(larger(clusters, inputs.pairs), kThreads), dim3(kThreads),
                     0, stream, static_cast<const Element*>(inputs.distribution), clusters,
                     static_cast<const Element*>(inputs.pair_weights), inputs.pairs, log_shares, pair_weights, invalid);
  for (int64_t first = 0; first < inputs.pairs && error == cudaSuccess; first += plan.block_pairs) {
    const int64_t count = smaller(plan.block_pairs, inputs.pairs - first);
    const Lines lines = Lines::of_pairs(first, count, inputs.pairs);
    error = launch_logits<Element>({inputs.rows, inputs.teacher_rows}, {inputs.weight, inputs.teacher_weight}, 2, lines,
                                   clusters, depth, inputs.temperature, plan.multiprocessors, logits, stream);
    if (error != cudaSuccess) return error;
    PairRows<T> in{};
    in.students = logits[0];
    in.teachers = logits[1];
    in.log_shares = log_shares;
    in.weights = pair_weights + first;
    in.values = values + 2 * first;
    in.invalid = invalid;
    in.count = count;
    in.clusters = clusters;
    in.beta = static_cast<T>(inputs.beta);
    in.slope = inputs.beta / (static_cast<double>(rows) * inputs.temperature);
    error = for_warps(clusters, [&](auto warps) {
      return device::launch(pair_rows_kernel<T, warps>, blocks_of(2 * count, 1), dim3(32 * warps), 0, stream, in);
    });
    if (error != cudaSuccess) return error;
    Product<T, Element> product{};
    product.left = Matrix<T>::of(logits[0], Lines::all(2 * count), clusters);
    product.right = Matrix<Element>::of(inputs.rows, lines, depth);
    product.result = {{grad_weight}, Lines::all(clusters), depth, 1, true};
    product.scale = 1;
    product.depth = 2 * count;
    error = launch_product<false, false>(product, 1, plan.multiprocessors, parts, stream);
    if (error != cudaSuccess || grad_rows == nullptr) continue;
    product.right = Matrix<Element>::of(inputs.weight, Lines::all(clusters), depth);
    product.result = {{grad_rows}, lines, depth, 1, false};
    product.depth = clusters;
    error = launch_product<true, false>(product, 1, plan.multiprocessors, parts, stream);
  }
  if (error != cudaSuccess) return error;
  const int64_t row_elements = grad_rows == nullptr ? 0 : rows * depth, weight_elements = clusters * depth;
  return device::launch(finish_information_kernel<T>, filling_blocks(larger(row_elements, weight_elements)),
                        dim3(kThreads), 0, stream, values, rows, invalid, static_cast<T*>(information_output),
                        grad_rows, row_elements, grad_weight, weight_elements);
}

template <class Element>
cudaError_t launch_statistics(const PairStatisticsInputs& inputs, const PairPlan& plan, const PairWorkspace& workspace,
                              void* sums, void* agreement_output, void* largest, cudaStream_t stream) {
  using T = Widened<Element>;
  const int64_t clusters = inputs.clusters;
  T* const logits = field_of<T>(workspace, kPairLogits);
  double* const parts = field_of<double>(workspace, kPairPartSums);
  double* const values = field_of<double>(workspace, kPairRowValues);
  double* const column_sums = field_of<double>(workspace, kPairColumnSums);
  auto* const invalid = field_of<unsigned>(workspace, kPairInvalid);
  T* const agreement = static_cast<T*>(agreement_output);

  cudaError_t error = device::memset_async(invalid, 0, sizeof(unsigned), stream);
  if (error != cudaSuccess) return error;
  error = device::memset_async(column_sums, 0, clusters * sizeof(double), stream);
  for (int64_t first = 0; first < inputs.pairs && error == cudaSuccess; first += plan.block_pairs) {
    const int64_t count = smaller(plan.block_pairs, inputs.pairs - first);
    error = launch_logits<Element>({inputs.rows, nullptr}, {inputs.weight, nullptr}, 1,
                                   Lines::of_pairs(first, count, inputs.pairs), clusters, inputs.depth,
                                   inputs.temperature, plan.multiprocessors, {logits, nullptr}, stream);
    if (error != cudaSuccess) return error;
    error = for_warps(clusters, [&](auto warps) {
      return device::launch(pair_shares_kernel<T, warps>, blocks_of(count, 1), dim3(32 * warps), 0, stream, logits,
                            count, clusters, agreement + first, values + first, invalid);
    });
    if (error != cudaSuccess) return error;
    const int64_t part_rows = column_part_rows(plan), row_parts = divide_up(2 * count, part_rows);
    const dim3 grid(static_cast<unsigned>(divide_up(clusters, 32)), static_cast<unsigned>(row_parts));
    error = device::launch(sum_columns_kernel<T>, grid, dim3(kThreads), 0, stream, logits, 2 * count, clusters,
                           part_rows, parts);
    if (error != cudaSuccess) return error;
    const Result<double> result{{column_sums}, Lines::all(1), clusters, 1, true};
    error = launch_add_parts<double>(parts, row_parts, result, stream);
  }
  if (error != cudaSuccess) return error;
  return device::launch(finish_statistics_kernel<T>, filling_blocks(larger(clusters, inputs.pairs)), dim3(kThreads), 0,
                        stream, values, inputs.pairs, column_sums, clusters, invalid, static_cast<T*>(sums), agreement,
                        static_cast<T*>(largest));
}

}  // namespace

PairPlan plan_pairs(int64_t pairs, int64_t clusters, int multiprocessors) {
  const int64_t fitting = kLogitsPerMultiprocessor * multiprocessors / (2 * clusters);
  return {larger<int64_t>(smaller(fitting, pairs), 1), multiprocessors};
}

PairBytes pair_information_bytes(const PairInformationInputs& inputs, const PairPlan& plan) {
  const int64_t wide = accumulator_bytes(inputs.type);
  PairBytes bytes{};
  bytes.field[kPairLogits] = bytes.field[kPairTeacherLogits] = 2 * plan.block_pairs * inputs.clusters * wide;
  bytes.field[kPairPartSums] = part_elements(plan.multiprocessors) * wide;
  bytes.field[kPairLogShares] = inputs.clusters * wide;
  bytes.field[kPairWeights] = inputs.pairs * wide;
  bytes.field[kPairRowValues] = 2 * inputs.pairs * static_cast<int64_t>(sizeof(double));
  bytes.field[kPairInvalid] = sizeof(unsigned);
  return bytes;
}

PairBytes pair_statistics_bytes(const PairStatisticsInputs& inputs, const PairPlan& plan) {
  const int64_t rows = 2 * plan.block_pairs, eight = sizeof(double);
  PairBytes bytes{};
  bytes.field[kPairLogits] = rows * inputs.clusters * accumulator_bytes(inputs.type);
  bytes.field[kPairPartSums] = divide_up(rows, column_part_rows(plan)) * inputs.clusters * eight;
  bytes.field[kPairRowValues] = inputs.pairs * eight;
  bytes.field[kPairColumnSums] = inputs.clusters * eight;
  bytes.field[kPairInvalid] = sizeof(unsigned);
  return bytes;
}

cudaError_t launch_pair_information(const PairInformationInputs& inputs, const PairPlan& plan,
                                    const PairWorkspace& workspace, void* information, void* grad_rows,
                                    void* grad_weight, cudaStream_t stream) {
  return for_element_type(inputs.type, [&](auto element) {
    return launch_information<decltype(element)>(inputs, plan, workspace, information, grad_rows, grad_weight, stream);
  });
}

cudaError_t launch_pair_statistics(const PairStatisticsInputs& inputs, const PairPlan& plan,
                                   const PairWorkspace& workspace, void* sums, void* agreement, void* largest,
                                   cudaStream_t stream) {
  return for_element_type(inputs.type, [&](auto element) {
    return launch_statistics<decltype(element)>(inputs, plan, workspace, sums, agreement, largest, stream);
  });
}

}  // namespace deepclust

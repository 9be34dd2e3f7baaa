// The information of pairs and its gradient, with the logits of a few pairs in memory.
//
// Both last layers are packed once for the tile core. A task packs the rows of a block of pairs, student and teacher,
// and multiplies them with both layers. While the logits are in the cache it replaces the student's by the gradient by
// them. The gradient by the rows follows at once. That by the last layer needs all rows of a cluster: gradients by the
// logits are kept for a chunk of pairs, and then tasks multiply them with the rows, each for some clusters. So every
// sum has one order, whatever the number of threads.
//
// pair_statistics keeps the logits of a block alone; its tasks add up the shares of a block, and blocks are added up in
// their order.
//
// Cost for R = 2B rows: pair_information 3 R K E multiply-adds, 4 with the gradient by the rows, and 3 R K
// exponentials; pair_statistics R K E and R K.
#include "pairs/pair_information.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "core/cpu/scratch.h"
#include "core/dtypes.h"
#include "core/host_device.h"

namespace deepclust {
namespace {

// Pairs of a block: 48 rows are whole panels of rows on every instruction set, and logits of 1,000 clusters for both
// heads take 384 KB, which a common second cache holds.
constexpr int64_t kBlockPairs = 24;
// Gradients by logits that are kept: 4 MB of float32, for 1,000 clusters 1,008 rows.
constexpr int64_t kKeptLogits = int64_t{1} << 20;
// Clusters of a task that multiplies these with the rows.
constexpr int64_t kTaskClusters = 48;
// Blocks whose sums of shares are kept apart.
constexpr int64_t kKeptBlocks = 64;
// Logits of a row are padded to whole steps of so many bytes.
constexpr int64_t kClusterBytes = 256;

// What the kernels have to know of a call.
template <typename T>
struct PairShape {
  int64_t pairs, clusters, depth;
  int64_t padded;             // clusters rounded up to whole steps
  int64_t score_stride;       // of logits, off the powers of two
  const T* zeros;             // (padded or depth, whichever is more)
  const T* log_distribution;  // (padded,) 0 where absent
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "pairs/cpu/pair_information.inl"
#include "core/cpu/foreach_capability.h"

namespace deepclust {
namespace {

template <typename T>
PairShape<T> shape_of(const at::Tensor& rows, const at::Tensor& weight, const T* zeros, const T* log_distribution) {
  const int64_t clusters = weight.size(0);
  const int64_t padded = round_up(clusters, kClusterBytes / static_cast<int64_t>(sizeof(T)));
  return {rows.size(0) / 2, clusters, rows.size(1), padded, padded + 16, zeros, log_distribution};
}

template <typename T>
int64_t padded_size(const at::Tensor& weight) {
  return std::max(shape_of<T>(weight, weight, nullptr, nullptr).padded, weight.size(1));
}

// A last layer in panels of columns.
template <typename T>
class PackedWeight {
 public:
  PackedWeight(const at::Tensor& weight, const T* zeros)
      : clusters_(weight.size(0)),
        depth_(weight.size(1)),
        columns_(DEEPCLUST_SELECT(panel_columns<T>)()),
        scratch_(round_up(clusters_, columns_) * depth_),
        panels_(scratch_.take(round_up(clusters_, columns_) * depth_)) {
    const T* from = weight.const_data_ptr<T>();
    at::parallel_for(0, divide_up(clusters_, columns_), 4, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * columns_;
        DEEPCLUST_SELECT(pack_weight<T>)(from, zeros, first, clusters_, depth_, panels_ + first * depth_);
      }
    });
  }

  const T* panels() const { return panels_; }

 private:
  int64_t clusters_, depth_, columns_;
  Scratch<T> scratch_;
  T* panels_;
};

// Rows of a block of so many pairs in memory, up to the end of the last panel.
template <typename T>
int64_t panel_rows_of(int64_t pairs) {
  return round_up(2 * pairs, DEEPCLUST_SELECT(panel_rows<T>)());
}

// The rows of a last layer, each filled up to the width of whole panels.
template <typename T>
std::vector<T> widened(const at::Tensor& weight, int64_t width) {
  const int64_t clusters = weight.size(0), depth = weight.size(1);
  std::vector<T> wide(clusters * width);
  const T* from = weight.const_data_ptr<T>();
  for (int64_t k = 0; k < clusters; ++k) std::copy(from + k * depth, from + (k + 1) * depth, wide.data() + k * width);
  return wide;
}

// The first columns of rows that are wider.
template <typename T>
void copy_narrow(const T* wide, int64_t rows, int64_t width, int64_t depth, T scale, T* narrow) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; ++k) narrow[r * depth + k] = wide[r * width + k] * scale;
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> nan_where(bool bad, at::Tensor a, at::Tensor b, at::Tensor c) {
  if (bad) {
    for (const at::Tensor& each : {a, b, c}) each.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  return {std::move(a), std::move(b), std::move(c)};
}

template <typename T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> information_of(
    const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& teacher_rows, const at::Tensor& teacher_weight,
    const at::Tensor& distribution, const at::Tensor& pair_weights, double beta, double temperature, bool want_rows) {
  // The logarithms of the distribution, and zeros.
  const int64_t size = padded_size<T>(weight);
  std::vector<T> zeros(size), log_distribution(size);
  const T* shares = distribution.const_data_ptr<T>();
  bool finite = true;
  for (int64_t k = 0; k < weight.size(0); ++k) {
    finite = finite && std::isfinite(shares[k]);
    log_distribution[k] = std::log(std::max(shares[k], std::numeric_limits<T>::min()));
  }
  const PairShape<T> shape = shape_of<T>(rows, weight, zeros.data(), log_distribution.data());
  const int64_t depth = shape.depth, stride = DEEPCLUST_SELECT(block_stride)(depth);
  const int64_t width = round_up(depth, DEEPCLUST_SELECT(panel_columns<T>)());

  // Both last layers, packed.
  const PackedWeight<T> student(weight, zeros.data()), teacher(teacher_weight, zeros.data());
  const std::vector<T> wide_weight = want_rows ? widened<T>(weight, width) : std::vector<T>();

  // Chunks of pairs, as equal as blocks allow.
  const int64_t most = std::max<int64_t>(kKeptLogits / (2 * shape.score_stride) / kBlockPairs, 1) * kBlockPairs;
  const int64_t chunks = std::max<int64_t>(divide_up(shape.pairs, most), 1);
  const int64_t chunk = round_up(divide_up(shape.pairs, chunks), kBlockPairs);
  const int64_t kept_rows = 2 * chunk + DEEPCLUST_SELECT(panel_rows<T>)();
  Scratch<T> scratch(Scratch<T>::size_of(kept_rows * stride) + Scratch<T>::size_of(kept_rows * shape.score_stride));
  T* blocks = scratch.take(kept_rows * stride);
  T* by_logits = scratch.take(kept_rows * shape.score_stride);

  const at::Tensor information = at::zeros({}, rows.options());
  const at::Tensor grad_rows = at::empty({want_rows ? rows.size(0) : 0, depth}, rows.options());
  const at::Tensor grad_weight = at::empty(weight.sizes(), rows.options());
  std::vector<T> by_weight(shape.clusters * width);
  std::vector<double> parts(divide_up(shape.pairs, kBlockPairs));
  const T* weights = pair_weights.const_data_ptr<T>();
  const T inverse_temperature = static_cast<T>(1 / temperature);

  for (int64_t start = 0; start < shape.pairs; start += chunk) {
    const int64_t end = std::min(start + chunk, shape.pairs);

    // Logits, and the gradient by them in their place.
    at::parallel_for(0, divide_up(end - start, kBlockPairs), 1, [&](int64_t begin, int64_t stop) {
      const int64_t most_rows = panel_rows_of<T>(kBlockPairs);
      Scratch<T> own(Scratch<T>::size_of(most_rows * stride) + Scratch<T>::size_of(most_rows * shape.score_stride) +
                     Scratch<T>::size_of(most_rows * width));
      T* teacher_block = own.take(most_rows * stride);
      T* teacher_logits = own.take(most_rows * shape.score_stride);
      T* by_rows = own.take(most_rows * width);
      for (int64_t block = begin; block < stop; ++block) {
        const int64_t first = start + block * kBlockPairs, pairs = std::min(kBlockPairs, end - first);
        T* student_block = blocks + 2 * block * kBlockPairs * stride;
        T* logits = by_logits + 2 * block * kBlockPairs * shape.score_stride;
        DEEPCLUST_SELECT(pack_pairs<T>)(rows.const_data_ptr<T>(), shape.pairs, first, pairs, depth, inverse_temperature,
                                        student_block);
        DEEPCLUST_SELECT(pack_pairs<T>)(teacher_rows.const_data_ptr<T>(), shape.pairs, first, pairs, depth,
                                        inverse_temperature, teacher_block);
        DEEPCLUST_SELECT(pair_logits<T>)(shape, student_block, student.panels(), 2 * pairs, logits);
        DEEPCLUST_SELECT(pair_logits<T>)(shape, teacher_block, teacher.panels(), 2 * pairs, teacher_logits);
        parts[first / kBlockPairs] = DEEPCLUST_SELECT(pair_gradients<T>)(shape, static_cast<T>(beta), weights + first,
                                                                         pairs, logits, teacher_logits);
        if (!want_rows) continue;
        DEEPCLUST_SELECT(rows_from_logits<T>)(shape, logits, wide_weight.data(), 2 * pairs, width, by_rows);
        T* target = grad_rows.template mutable_data_ptr<T>();
        copy_narrow(by_rows, pairs, width, depth, inverse_temperature, target + first * depth);
        copy_narrow(by_rows + pairs * width, pairs, width, depth, inverse_temperature,
                    target + (shape.pairs + first) * depth);
      }
    });

    // The gradient by the last layer, some clusters at a time.
    at::parallel_for(0, divide_up(shape.clusters, kTaskClusters), 1, [&](int64_t begin, int64_t stop) {
      for (int64_t task = begin; task < stop; ++task) {
        const int64_t first = task * kTaskClusters, columns = std::min(kTaskClusters, shape.clusters - first);
        DEEPCLUST_SELECT(add_weight_gradient<T>)(shape, by_logits + first, blocks, 2 * (end - start), columns, width,
                                                 by_weight.data() + first * width);
      }
    });
  }
  double sum = 0;
  for (const double part : parts) sum += part;
  for (int64_t pair = 0; pair < shape.pairs; ++pair) finite = finite && std::isfinite(weights[pair]);
  *information.template mutable_data_ptr<T>() = static_cast<T>(sum / std::max<double>(2.0 * shape.pairs, 1));
  copy_narrow(by_weight.data(), shape.clusters, width, depth, T(1), grad_weight.template mutable_data_ptr<T>());
  return nan_where(!finite || std::isnan(sum), information, grad_rows, grad_weight);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_information_cpu(const at::Tensor& rows,            // (2B, E)
                                                                    const at::Tensor& weight,          // (K, E)
                                                                    const at::Tensor& teacher_rows,    // (2B, E)
                                                                    const at::Tensor& teacher_weight,  // (K, E)
                                                                    const at::Tensor& distribution,    // (K,)
                                                                    const at::Tensor& pair_weights,    // (B,)
                                                                    double beta, double temperature, bool want_rows) {
  check_pair_information(rows, weight, teacher_rows, teacher_weight, distribution, pair_weights, beta, temperature);
  const auto run = rows.scalar_type() == at::kDouble ? information_of<double> : information_of<float>;
  return run(to_accumulation(rows), to_accumulation(weight), to_accumulation(teacher_rows),
             to_accumulation(teacher_weight), to_accumulation(distribution), to_accumulation(pair_weights), beta,
             temperature, want_rows);
}

template <typename T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> statistics_of(const at::Tensor& rows, const at::Tensor& weight,
                                                             double temperature) {
  const std::vector<T> zeros(padded_size<T>(weight));
  const PairShape<T> shape = shape_of<T>(rows, weight, zeros.data(), zeros.data());
  const int64_t stride = DEEPCLUST_SELECT(block_stride)(shape.depth);
  const PackedWeight<T> packed(weight, zeros.data());
  const at::Tensor sums = at::empty({shape.clusters}, rows.options());
  const at::Tensor agreement = at::empty({shape.pairs}, rows.options());
  const at::Tensor largest = at::zeros({}, rows.options());
  std::vector<double> total(shape.clusters);
  double all_largest = 0;
  const int64_t blocks = divide_up(shape.pairs, kBlockPairs);
  std::vector<T> of_blocks(std::min(blocks, kKeptBlocks) * shape.padded);
  std::vector<double> largest_of_blocks(blocks);
  for (int64_t start = 0; start < blocks; start += kKeptBlocks) {
    const int64_t end = std::min(start + kKeptBlocks, blocks);
    at::parallel_for(start, end, 1, [&](int64_t begin, int64_t stop) {
      const int64_t most_rows = panel_rows_of<T>(kBlockPairs);
      Scratch<T> own(Scratch<T>::size_of(most_rows * stride) + Scratch<T>::size_of(most_rows * shape.score_stride));
      T* packed_rows = own.take(most_rows * stride);
      T* logits = own.take(most_rows * shape.score_stride);
      for (int64_t block = begin; block < stop; ++block) {
        const int64_t first = block * kBlockPairs, pairs = std::min(kBlockPairs, shape.pairs - first);
        DEEPCLUST_SELECT(pack_pairs<T>)(rows.const_data_ptr<T>(), shape.pairs, first, pairs, shape.depth,
                                        static_cast<T>(1 / temperature), packed_rows);
        DEEPCLUST_SELECT(pair_logits<T>)(shape, packed_rows, packed.panels(), 2 * pairs, logits);
        largest_of_blocks[block] =
            DEEPCLUST_SELECT(pair_shares<T>)(shape, pairs, logits, of_blocks.data() + (block - start) * shape.padded,
                                             agreement.template mutable_data_ptr<T>() + first);
      }
    });
    for (int64_t block = start; block < end; ++block) {
      all_largest += largest_of_blocks[block];
      const T* part = of_blocks.data() + (block - start) * shape.padded;
      for (int64_t k = 0; k < shape.clusters; ++k) total[k] += part[k];
    }
  }
  std::copy(total.begin(), total.end(), sums.template mutable_data_ptr<T>());
  *largest.template mutable_data_ptr<T>() = static_cast<T>(all_largest / std::max<double>(2.0 * shape.pairs, 1));
  return nan_where(std::isnan(all_largest), sums, agreement, largest);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_statistics_cpu(const at::Tensor& rows,    // (2B, E)
                                                                   const at::Tensor& weight,  // (K, E)
                                                                   double temperature) {
  check_pair_statistics(rows, weight, temperature);
  const auto run = rows.scalar_type() == at::kDouble ? statistics_of<double> : statistics_of<float>;
  return run(to_accumulation(rows), to_accumulation(weight), temperature);
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("pair_information", pair_information_cpu);
  m.impl("pair_statistics", pair_statistics_cpu);
}

}  // namespace deepclust

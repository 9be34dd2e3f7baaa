// k-means on the CPU.
//
// Assignment: one matrix product of a panel of rows with all centroids, less a point amid the centroids, which cancels
// in all comparisons and keeps offset data exact. The score of a centroid y is x.y - |y|^2 / 2, larger for a nearer
// one. A row is a lane of the vectors, so that each keeps its best and its second best score as they come out of the
// product. Mostly these differ by more than the rounding of a score allows, and the best one is the nearest. Otherwise
// all centroids that rounding leaves open are compared by distances summed over squared differences, ties to the lowest
// index; the distance of the nearest is the result. So the instruction set does not show in a label, and no score in a
// distance. Rows or centroids whose squares overflow have no scores: all centroids are compared.
//
// Scores of float32 rows come from bfloat16 where the processor multiplies it, and else, with more than a few
// centroids, from 16-bit integers: at half the cost and with wider bounds. Where they leave most rows of a panel open,
// that panel and some after it are multiplied in float32.
//
// The cosine of normalized rows is 1 - |x - y|^2 / 2, so the same search finds it. A centroid with a norm below 1e-12
// stays shorter than 1 when it is normalized, by a shortfall of its squared norm that its score takes into account.
//
// A step does both at once, part by part, and needs no distances: only rows that more than one centroid is left for are
// compared by them.
//
// Update: the rows are cut in parts, as the sizes alone say, each part has its own sums, and these are added in order.
// Sums of a few rows are taken in float32, and added up in double: the error does not grow with the number of rows.
#include "kmeans/kmeans_assign.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/tensor.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "core/constants.h"
#include "core/cpu/capability.h"
#include "core/cpu/scratch.h"
#include "core/dtypes.h"
#include "core/host_device.h"

#if DEEPCLUST_X86
#include <immintrin.h>
#endif

namespace deepclust {
namespace {

constexpr int64_t kMaxChunk = 1024;  // centroids whose scores are kept for a look back: an eighth of a common L2 cache
constexpr int64_t kMinIntegerClusters = 8;   // fewer are multiplied in less time than it takes to round a row
constexpr float kPairRounding = 1.0f / 256;  // of bfloat16, relative
// For so many panels rough products are not tried again where they left most rows open. A try that fails costs up to
// half a panel's scores of the first chunk.
constexpr int64_t kDoubtfulPanels = 7;

// Sums of a part cost as much memory as the centroids, so a part has at least a few rows for each of these.
constexpr int64_t kMinPartRows = 1024;
constexpr int64_t kPartRowsPerCluster = 8;
constexpr int64_t kPartRowsMultiple = 64;  // whole panels
constexpr int64_t kMaxParts = 64;
constexpr int64_t kMaxIdleShare = 20;  // 1 / 20 of the rows
constexpr int64_t kRowsInT = 16;       // of a cluster, that are added up before the sum goes on in double

// What the kernels read.
template <typename T>
struct AssignInputs {
  int64_t clusters;              // K
  int64_t depth;                 // D
  int64_t pairs;                 // D / 2, rounded up
  int64_t chunk;                 // centroids at a time, a multiple of kPanelRows
  const T* features;             // (N, D)
  const T* centroids;            // (K, D) normalized for the cosine
  const T* shift;                // (D,)
  const T* block;                // (K rounded up to kPanelRows, block_stride(D)) centroids less `shift`
  const T* bias;                 // (K rounded up to kPanelRows,)
  const int32_t* pair_block;     // (K rounded up to kPanelRows, pairs) the same as pairs of bfloat16, or null
  const int32_t* integer_block;  // (K rounded up to kPanelRows, pairs) the same as pairs of integers, or null
  const T* shortfall;  // (K,) 1 - |y|^2 of normalized centroids that are shorter than 1, else 0; only for the cosine
  T reach;             // the largest |y - shift|; for the cosine with the shortfall
  T pair_error;        // the largest distance of a y - shift to its pairs
  T rounding;          // bound on the relative error of a score
  bool cosine;
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "kmeans/cpu/kmeans_assign.inl"
#include "core/cpu/foreach_capability.h"

namespace deepclust {
namespace {

// Rounds packed centroids to pairs of bfloat16 and returns the largest distance by which that moves one.
float make_pairs(const float* block,  // (count, stride)
                 int64_t count, int64_t stride, int64_t depth,
                 int32_t* pair_block  // (count, depth / 2 rounded up)
) {
  float largest = 0;
  for (int64_t c = 0; c < count; ++c) {
    float moved = 0;
    for (int64_t k = 0; k < depth; k += 2) {
      uint32_t bits = 0;
      for (int64_t i = 0; i < 2 && k + i < depth; ++i) {
        const float value = block[c * stride + k + i];
        const c10::BFloat16 rounded(value);
        bits |= static_cast<uint32_t>(rounded.x) << (16 * i);
        moved += (value - rounded) * (value - rounded);
      }
      *pair_block++ = static_cast<int32_t>(bits);
    }
    largest = std::max(largest, moved);
  }
  return 1.01f * std::sqrt(largest);
}

// Centroids, packed to be compared with rows.
template <typename T>
class Assignment {
 public:
  Assignment(const at::Tensor& features, const at::Tensor& centroids, bool cosine);

  bool finite() const { return finite_; }
  int64_t workspace() const { return DEEPCLUST_SELECT(assign_workspace<T>)(in_); }

  // Labels and, unless null, distances of rows [begin, end).
  void operator()(int64_t begin, int64_t end, T* memory /* (workspace(),) */, int64_t* labels /* (N,) */,
                  T* distances /* (N,) or null */) const {
    const int64_t width = DEEPCLUST_SELECT(panel_columns<T>)();
    int64_t doubtful = 0;
    for (int64_t first = begin; first < end; first += width) {
      DEEPCLUST_SELECT(assign_panel<T>)(in_, first, std::min(width, end - first), memory, doubtful, labels, distances);
    }
  }

 private:
  static constexpr auto size_of = Scratch<T>::size_of;
  const int64_t tile_ = DEEPCLUST_SELECT(panel_rows<T>)();
  const int64_t padded_, pairs_, stride_;
  const bool by_pairs_, by_integers_;
  Scratch<T> scratch_;
  Scratch<int32_t> pair_scratch_;
  AssignInputs<T> in_;
  bool finite_;
};

template <typename T>
Assignment<T>::Assignment(const at::Tensor& features, const at::Tensor& centroids, bool cosine)
    : padded_(round_up(centroids.size(0), tile_)),
      pairs_((centroids.size(1) + 1) / 2),
      stride_(DEEPCLUST_SELECT(block_stride)(centroids.size(1))),
      by_pairs_(std::is_same_v<T, float> && centroids.size(0) > 1 && has_bfloat16()),
      by_integers_(std::is_same_v<T, float> && centroids.size(0) >= kMinIntegerClusters && !by_pairs_),
      scratch_(size_of(padded_ * stride_) + size_of(cosine ? centroids.numel() : 0) + 2 * size_of(padded_) +
               size_of(centroids.size(1))),
      pair_scratch_(by_pairs_ || by_integers_ ? padded_ * pairs_ : 0) {
  const int64_t depth = centroids.size(1), clusters = centroids.size(0);
  T* block = scratch_.take(padded_ * stride_);
  T* normalized = scratch_.take(cosine ? clusters * depth : 0);
  T* bias = scratch_.take(padded_);
  T* shortfall = scratch_.take(padded_);
  T* shift = scratch_.take(depth);
  int32_t* pair_block = by_pairs_ ? pair_scratch_.take(padded_ * pairs_) : nullptr;
  const T* source = centroids.const_data_ptr<T>();
  in_ = {.clusters = clusters,
         .depth = depth,
         .pairs = pairs_,
         .chunk = std::min(padded_, kMaxChunk / tile_ * tile_),
         .features = features.const_data_ptr<T>(),
         .centroids = cosine ? normalized : source,
         .shift = shift,
         .block = block,
         .bias = bias,
         .pair_block = pair_block,
         .integer_block = nullptr,
         .shortfall = shortfall,
         .reach = T(0),
         .pair_error = T(0),
         .rounding = (depth + 32) * std::numeric_limits<T>::epsilon() / 2,
         .cosine = cosine};
  std::atomic<bool> finite{true};
  // Step 1: unit centroids, for cosine.
  if (cosine) {
    at::parallel_for(0, clusters, 16, [&](int64_t begin, int64_t end) {
      if (!DEEPCLUST_SELECT(normalize_centroids<T>)(source, begin, end, depth, normalized, shortfall)) finite = false;
    });
  }
  // Step 2: their mean, which is taken off rows and centroids, because shorter ones have smaller bounds of rounding.
  std::fill(shift, shift + depth, T(0));
  for (int64_t c = 0; c < clusters; ++c) {
    for (int64_t k = 0; k < depth; ++k) shift[k] += in_.centroids[c * depth + k] / clusters;
  }
  // Step 3: centroids as the tile product takes them, and the bias of each.
  at::parallel_for(0, padded_ / tile_, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * tile_; c < end * tile_; c += tile_) {
      if (!DEEPCLUST_SELECT(pack_centroids<T>)(in_, c, block + c * stride_, bias + c)) finite = false;
    }
  });
  finite_ = finite;
  in_.reach = std::sqrt(-2 * *std::min_element(bias, bias + clusters));
  // Step 4: the same in pairs of bfloat16 or of 16-bit integers, for the first scores.
  if constexpr (std::is_same_v<T, float>) {
    if (by_pairs_) in_.pair_error = make_pairs(block, padded_, stride_, depth, pair_block);
    if (by_integers_ && in_.reach <= std::numeric_limits<T>::max()) {
      int32_t* integer_block = pair_scratch_.take(padded_ * pairs_);
      at::parallel_for(0, padded_, 64, [&](int64_t begin, int64_t end) {
        DEEPCLUST_SELECT(integer_centroids)(in_, begin, end, integer_block);
      });
      in_.integer_block = integer_block;
    }
  }
}

template <typename T>
void assign(const at::Tensor& features, const at::Tensor& centroids, bool cosine, const at::Tensor& labels,
            const at::Tensor& distances) {
  const Assignment<T> assignment(features, centroids, cosine);
  if (!assignment.finite()) {
    labels.fill_(-1);
    distances.fill_(std::numeric_limits<T>::quiet_NaN());
    return;
  }
  const int64_t count = features.size(0), width = DEEPCLUST_SELECT(panel_columns<T>)();
  int64_t* label = labels.mutable_data_ptr<int64_t>();
  T* distance = distances.mutable_data_ptr<T>();
  at::parallel_for(0, divide_up(count, width), 1, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(assignment.workspace());
    T* memory = scratch.take(assignment.workspace());
    assignment(begin * width, std::min(end * width, count), memory, label, distance);
  });
}

std::tuple<at::Tensor, at::Tensor> kmeans_assign_cpu(const at::Tensor& features,   // (N, D)
                                                     const at::Tensor& centroids,  // (K, D)
                                                     std::string_view metric) {
  check_kmeans_assign(features, centroids, metric);
  const at::Tensor rows = to_accumulation(features), columns = to_accumulation(centroids);
  const at::Tensor labels = at::empty({rows.size(0)}, rows.options().dtype(at::kLong));
  const at::Tensor distances = at::empty({rows.size(0)}, rows.options());
  if (rows.size(0) > 0) {
    const auto run = rows.scalar_type() == at::kDouble ? assign<double> : assign<float>;
    run(rows, columns, metric == "cosine", labels, distances);
  }
  return {labels, to_dtype(distances, features.scalar_type())};
}

int64_t part_rows_of(int64_t count, int64_t clusters) {
  const int64_t least_rows = std::max({kMinPartRows, kPartRowsPerCluster * clusters, divide_up(count, kMaxParts)});
  return round_up(least_rows, kPartRowsMultiple);
}

// Sums and sizes of clusters. `label_rows` is called for each part before its labels are read, by the same thread.
template <typename T, typename LabelRows>
void update(const at::Tensor& features, const int64_t* labels, const at::Tensor& sums, const at::Tensor& counts,
            const LabelRows& label_rows) {
  const int64_t count = features.size(0), depth = features.size(1), clusters = sums.size(0);
  const T* rows = features.const_data_ptr<T>();
  T* sum = sums.mutable_data_ptr<T>();
  int64_t* size = counts.mutable_data_ptr<int64_t>();
  const int64_t part_rows = part_rows_of(count, clusters);
  const int64_t parts = divide_up(count, part_rows);
  const int64_t part_size = Scratch<T>::size_of(clusters * depth), part_clusters = Scratch<int64_t>::size_of(clusters);
  Scratch<T> sum_scratch(parts * part_size);
  Scratch<int64_t> count_scratch(parts * part_clusters);
  T* part_sums = sum_scratch.take(parts * part_size);
  int64_t* part_counts = count_scratch.take(parts * part_clusters);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t wide_size = std::is_same_v<T, double> ? 0 : clusters * depth;
    Scratch<double> scratch(Scratch<double>::size_of(wide_size));
    double* wide = scratch.take(wide_size);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * part_rows, last = std::min(first + part_rows, count);
      label_rows(first, last);
      DEEPCLUST_SELECT(sum_part<T>)(rows, labels, first, last, depth, clusters, wide, part_sums + part * part_size,
                                    part_counts + part * part_clusters);
    }
  });
  at::parallel_for(0, clusters, 16, [&](int64_t begin, int64_t end) {
    Scratch<double> scratch(Scratch<double>::size_of(depth));
    double* wide = scratch.take(depth);
    for (int64_t c = begin; c < end; ++c) {
      DEEPCLUST_SELECT(add_parts<T>)(part_sums + c * depth, parts, part_size, depth, wide, sum + c * depth);
      size[c] = 0;
      for (int64_t part = 0; part < parts; ++part) size[c] += part_counts[part * part_clusters + c];
    }
  });
}

std::tuple<at::Tensor, at::Tensor> kmeans_update_cpu(const at::Tensor& features,  // (N, D)
                                                     const at::Tensor& labels,    // (N,) int64
                                                     int64_t num_clusters) {
  check_kmeans_update(features, labels, num_clusters);
  const at::Tensor rows = to_accumulation(features);
  const at::Tensor sums = at::empty({num_clusters, rows.size(1)}, rows.options());
  const at::Tensor counts = at::empty({num_clusters}, rows.options().dtype(at::kLong));
  const at::Tensor label = labels.contiguous();
  const auto run = [&](auto zero) {
    update<decltype(zero)>(rows, label.const_data_ptr<int64_t>(), sums, counts, [](int64_t, int64_t) {});
  };
  rows.scalar_type() == at::kDouble ? run(0.0) : run(0.0f);
  return {sums, counts};
}

// Turns sums into centers, in place; returns their squared distance from the old ones and how many are without a row.
template <typename T>
std::array<double, 2> sums_to_centers(const at::Tensor& sums, const at::Tensor& counts, const at::Tensor& old,
                                      bool cosine) {
  const int64_t clusters = sums.size(0), depth = sums.size(1);
  T* center = sums.mutable_data_ptr<T>();
  const T* before = old.const_data_ptr<T>();
  const int64_t* size = counts.const_data_ptr<int64_t>();
  double shift = 0, empty = 0;
  for (int64_t c = 0; c < clusters; ++c, center += depth, before += depth) {
    T divisor = static_cast<T>(size[c]);
    if (cosine) {
      double squares = 0;
      for (int64_t k = 0; k < depth; ++k) squares += static_cast<double>(center[k]) * center[k];
      divisor = static_cast<T>(std::sqrt(squares));
    }
    empty += size[c] == 0;
    for (int64_t k = 0; k < depth; ++k) {
      center[k] = divisor > 0 ? center[k] / divisor : before[k];
      const double moved = static_cast<double>(center[k]) - before[k];
      shift += moved * moved;
    }
  }
  return {shift, empty};
}

template <typename T>
std::array<double, 2> step(const at::Tensor& features, const at::Tensor& centroids, bool cosine,
                           const at::Tensor& labels, const at::Tensor& centers, const at::Tensor& counts) {
  const Assignment<T> assignment(features, centroids, cosine);
  const int64_t count = features.size(0);
  int64_t* label = labels.mutable_data_ptr<int64_t>();
  const auto label_rows = [&](int64_t begin, int64_t end) {
    if (!assignment.finite()) {
      std::fill(label + begin, label + end, int64_t{-1});
      return;
    }
    Scratch<T> scratch(assignment.workspace());
    assignment(begin, end, scratch.take(assignment.workspace()), label, nullptr);
  };
  // Rows are labeled part by part, and added up while they are in cache, unless one thread has much more than its share
  // of the few parts that there are with many clusters.
  const int64_t threads = at::get_num_threads(), part_rows = part_rows_of(count, centroids.size(0));
  const int64_t parts_of_one = divide_up(divide_up(count, part_rows), threads);
  if (parts_of_one * part_rows * threads <= count + count / kMaxIdleShare) {
    update<T>(features, label, centers, counts, label_rows);
  } else {
    at::parallel_for(0, count, kPartRowsMultiple, label_rows);
    update<T>(features, label, centers, counts, [](int64_t, int64_t) {});
  }
  return sums_to_centers<T>(centers, counts, centroids, cosine);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> kmeans_step_cpu(const at::Tensor& features,   // (N, D)
                                                                           const at::Tensor& centroids,  // (K, D)
                                                                           std::string_view metric) {
  check_kmeans_assign(features, centroids, metric);
  const at::Tensor rows = to_accumulation(features), columns = to_accumulation(centroids);
  const at::Tensor labels = at::empty({rows.size(0)}, rows.options().dtype(at::kLong));
  const at::Tensor centers = at::empty_like(columns);
  const at::Tensor counts = at::empty({columns.size(0)}, labels.options());
  const auto run = rows.scalar_type() == at::kDouble ? step<double> : step<float>;
  const std::array<double, 2> change = run(rows, columns, metric == "cosine", labels, centers, counts);
  return {labels, centers, counts, at::tensor(change, rows.options().dtype(at::kDouble))};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("kmeans_assign", kmeans_assign_cpu);
  m.impl("kmeans_step", kmeans_step_cpu);
  m.impl("kmeans_update", kmeans_update_cpu);
}

}  // namespace deepclust

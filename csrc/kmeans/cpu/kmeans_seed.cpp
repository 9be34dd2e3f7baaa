// Greedy k-means++ on the CPU.
//
// A step compares its candidates with all rows, and few of these get nearer: of random rows, one in t at step t. So the
// rows are kept as 16-bit integers, a row in each lane of the vectors, half of what float32 takes, and all candidates
// of a step are multiplied with a panel of rows while it is in cache. The product leaves a bound on the distance, and
// what it cannot exclude is computed from the rows themselves, as kmeans_assign does. So the integers do not show in a
// result.
//
// Rows are packed less their mean, which cancels in all distances. Where norms overflow, and for cosines of rows
// shorter than 1, nothing is excluded.
//
// A candidate's gain is the sum, over the rows that it is nearer to, of integers by which their costs fall. These rows
// are kept as bits, by which the winner's costs are taken over. Sums are of integers: the same on any number of
// threads. Cost: N D (K C) 16-bit multiply-adds; memory: 2 N D bytes and about 20 N.
#include "kmeans/kmeans_seed.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

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

constexpr int64_t kBlockRows = 1024;  // whole panels

// Rows and what is known of them while centers are chosen; padded to whole panels.
template <typename T>
struct SeedState {
  int64_t count, depth, pairs;  // N, D, D / 2 rounded up
  const T* rows;                // (N, D) normalized for the cosine
  const T* inverse_norm;        // (N,) 1 / max(norm, 1e-12), only for the cosine
  const double* weights;        // (N,) or null
  const T* shift;               // (D,)
  int32_t* panels;              // (N padded / columns, pairs, columns) rows less `shift` as integers
  float* norm;                  // (N padded,) of rows less `shift`
  float* bound;                 // (N padded,) see set_least
  double* least;                // (N,) least cost so far
  double slack;                 // bound on relative errors of norms and distances
  bool cosine;
};

struct SeedCandidates {
  int32_t* pairs;  // (C, pairs)
  float* slope;    // (C,)
  float* error;    // (C,)
  float* square;   // (C,) NaN where nothing can be excluded
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "kmeans/cpu/kmeans_seed.inl"
#include "core/cpu/foreach_capability.h"

namespace deepclust {
namespace {

// By what to multiply values up to the largest, so that they hardly lose as integers, yet N of them fit int64.
double integer_scale(int64_t count, double largest) {
  const int bits = 64 - __builtin_clzll(static_cast<uint64_t>(count));
  return std::ldexp(1.0, 62 - bits) / std::max(largest, 1e-280);
}

// Sums of values as integers by blocks, in which uniform numbers find their places.
class Draw {
 public:
  Draw(const double* values, int64_t count, double largest)
      : values_(values), count_(count), scale_(integer_scale(count, largest)), sums_(divide_up(count, kBlockRows)) {
    at::parallel_for(0, static_cast<int64_t>(sums_.size()), 8, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlockRows;
        sums_[block] = DEEPCLUST_SELECT(sum_integers)(values, first, std::min(first + kBlockRows, count), scale_);
      }
    });
    for (const int64_t sum : sums_) total_ += sum;
  }

  double scale() const { return scale_; }

  // The first place whose running sum exceeds that share of the total, else the last one.
  int64_t operator()(double uniform) const {
    const int64_t target = static_cast<int64_t>(uniform * static_cast<double>(total_));
    int64_t running = 0;
    for (size_t block = 0; block < sums_.size(); running += sums_[block++]) {
      if (running + sums_[block] <= target) continue;
      int64_t i = static_cast<int64_t>(block) * kBlockRows;
      while ((running += static_cast<int64_t>(values_[i] * scale_)) <= target) ++i;
      return i;
    }
    return count_ - 1;
  }

 private:
  const double* values_;
  int64_t count_;
  double scale_;
  std::vector<int64_t> sums_;
  int64_t total_ = 0;
};

// The mean of all rows, near enough: any other point amid them would do.
template <typename T>
void find_mean(const T* rows, int64_t count, int64_t depth, T* mean /* (depth,) */) {
  std::vector<double> sum(depth);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < depth; ++k) sum[k] += static_cast<double>(rows[i * depth + k]);
  }
  for (int64_t k = 0; k < depth; ++k) mean[k] = static_cast<T>(sum[k] / static_cast<double>(count));
}

template <typename T>
class Seeding {
 public:
  Seeding(const at::Tensor& features, int64_t candidates, bool cosine, const double* weights);

  // Chooses centers; false if a row is not finite.
  bool operator()(const double* uniform /* (clusters, candidates) */, int64_t clusters, int64_t* places);

 private:
  static constexpr auto size_of = Scratch<T>::size_of;
  static constexpr auto float_size = Scratch<float>::size_of;
  const int64_t columns_ = DEEPCLUST_SELECT(integer_columns)();
  const int64_t count_, depth_, pairs_, panels_, padded_, block_panels_, blocks_, trials_;
  Scratch<T> scratch_;
  Scratch<float> float_scratch_;
  Scratch<int32_t> pair_scratch_;
  Scratch<double> cost_scratch_;
  SeedState<T> state_;
  SeedCandidates candidates_;
  std::vector<uint32_t> nearer_;  // (panels, C)
  bool finite_;

  // Calls f(first panel, last panel, block) for all blocks.
  template <typename F>
  void for_blocks(const F& f) const {
    at::parallel_for(0, blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        f(block * block_panels_, std::min((block + 1) * block_panels_, panels_), block);
      }
    });
  }

  int64_t best_of(const int64_t* places /* (C,) */, double scale);
};

template <typename T>
Seeding<T>::Seeding(const at::Tensor& features, int64_t candidates, bool cosine, const double* weights)
    : count_(features.size(0)),
      depth_(features.size(1)),
      pairs_((depth_ + 1) / 2),
      panels_(divide_up(count_, columns_)),
      padded_(panels_ * columns_),
      block_panels_(kBlockRows / columns_),
      blocks_(divide_up(panels_, block_panels_)),
      trials_(candidates),
      scratch_(size_of(depth_) + (cosine ? size_of(count_ * depth_) + size_of(count_) : 0)),
      float_scratch_(2 * float_size(padded_) + 3 * float_size(candidates)),
      pair_scratch_(Scratch<int32_t>::size_of(padded_ * pairs_) + Scratch<int32_t>::size_of(candidates * pairs_)),
      cost_scratch_(Scratch<double>::size_of(count_)),
      nearer_(panels_ * candidates) {
  const T* rows = features.const_data_ptr<T>();
  T* shift = scratch_.take(depth_);
  T* normalized = cosine ? scratch_.take(count_ * depth_) : nullptr;
  T* inverse_norm = cosine ? scratch_.take(count_) : nullptr;
  std::atomic<bool> finite{true};
  at::parallel_for(0, count_, kBlockRows, [&](int64_t begin, int64_t end) {
    const bool fine = cosine
                          ? DEEPCLUST_SELECT(normalize_seed_rows<T>)(rows, begin, end, depth_, normalized, inverse_norm)
                          : DEEPCLUST_SELECT(all_rows_finite<T>)(rows, begin, end, depth_);
    if (!fine) finite = false;
  });
  finite_ = finite;
  if (!finite_) return;
  find_mean(cosine ? normalized : rows, count_, depth_, shift);
  const double precision = std::numeric_limits<float>::epsilon();
  state_ = {.count = count_,
            .depth = depth_,
            .pairs = pairs_,
            .rows = cosine ? normalized : rows,
            .inverse_norm = inverse_norm,
            .weights = weights,
            .shift = shift,
            .panels = pair_scratch_.take(padded_ * pairs_),
            .norm = float_scratch_.take(padded_),
            .bound = float_scratch_.take(padded_),
            .least = cost_scratch_.take(count_),
            .slack = (static_cast<double>(depth_) / 32 + 32) * precision,
            .cosine = cosine};
  candidates_ = {pair_scratch_.take(candidates * pairs_), float_scratch_.take(candidates),
                 float_scratch_.take(candidates), float_scratch_.take(candidates)};
  std::fill(state_.bound + count_, state_.bound + padded_, 0.0f);
  for_blocks([&](int64_t begin, int64_t end, int64_t) {
    const int64_t size = DEEPCLUST_SELECT(seed_workspace)(depth_);
    Scratch<float> scratch(size);
    DEEPCLUST_SELECT(pack_seed_panels<T>)(state_, begin, end, scratch.take(size));
  });
}

// Which candidate leaves the least sum of costs.
template <typename T>
int64_t Seeding<T>::best_of(const int64_t* places, double scale) {
  DEEPCLUST_SELECT(gather_candidates<T>)(state_, places, trials_, candidates_);
  std::vector<std::atomic<int64_t>> gains(trials_);
  at::parallel_for(0, panels_, block_panels_, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> found(trials_);
    DEEPCLUST_SELECT(search_panels<T>)(state_, candidates_, places, trials_, begin, end, scale, nearer_.data(),
                                       found.data());
    for (int64_t c = 0; c < trials_; ++c) gains[c] += found[c];
  });
  return std::max_element(gains.begin(), gains.end(),
                          [](const auto& a, const auto& b) { return a.load() < b.load(); }) -
         gains.begin();
}

template <typename T>
bool Seeding<T>::operator()(const double* uniform, int64_t clusters, int64_t* places) {
  if (!finite_) return false;
  // The first center, by weight.
  if (state_.weights == nullptr) {
    places[0] = std::clamp(static_cast<int64_t>(uniform[0] * static_cast<double>(count_)), int64_t{0}, count_ - 1);
  } else {
    places[0] = Draw(state_.weights, count_, *std::max_element(state_.weights, state_.weights + count_))(uniform[0]);
  }
  at::parallel_for(0, count_, kBlockRows, [&](int64_t begin, int64_t end) {
    DEEPCLUST_SELECT(start_seed_rows<T>)(state_, begin, end, places[0]);
  });
  double largest = *std::max_element(state_.least, state_.least + count_);
  // Each further one, of candidates by cost.
  std::vector<int64_t> drawn(trials_);
  std::vector<double> block_largest(blocks_);
  for (int64_t step = 1; step < clusters; ++step) {
    const Draw draw(state_.least, count_, largest);
    for (int64_t c = 0; c < trials_; ++c) drawn[c] = draw(uniform[step * trials_ + c]);
    const int64_t best = best_of(drawn.data(), draw.scale());
    places[step] = drawn[best];
    for_blocks([&](int64_t begin, int64_t end, int64_t block) {
      block_largest[block] =
          DEEPCLUST_SELECT(take_center<T>)(state_, begin, end, drawn[best], nearer_.data() + best, trials_);
    });
    largest = *std::max_element(block_largest.begin(), block_largest.end());
  }
  return true;
}

template <typename T>
void seed(const at::Tensor& features, const at::Tensor& uniform, bool cosine, const double* weights,
          const at::Tensor& places) {
  Seeding<T> seeding(features, uniform.size(1), cosine, weights);
  if (!seeding(uniform.const_data_ptr<double>(), uniform.size(0), places.mutable_data_ptr<int64_t>())) places.fill_(-1);
}

at::Tensor kmeans_seed_cpu(const at::Tensor& features,  // (N, D)
                           const at::Tensor& uniform,   // (K, C)
                           std::string_view metric,
                           const std::optional<at::Tensor>& weights  // (N,)
) {
  check_kmeans_seed(features, uniform, metric, weights);
  const at::Tensor rows = to_accumulation(features), numbers = uniform.contiguous();
  const at::Tensor row_weights = weights ? weights->contiguous() : at::Tensor();
  const at::Tensor places = at::empty({uniform.size(0)}, rows.options().dtype(at::kLong));
  const auto run = rows.scalar_type() == at::kDouble ? seed<double> : seed<float>;
  run(rows, numbers, metric == "cosine", weights ? row_weights.const_data_ptr<double>() : nullptr, places);
  return places;
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) { m.impl("kmeans_seed", kmeans_seed_cpu); }

}  // namespace deepclust

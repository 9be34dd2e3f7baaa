// What both directions of Sinkhorn-Knopp start from: shares, scores that exponents can bear, and passes over the rows.
// Included after the kernels of sinkhorn_knopp.inl.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/cpu/scratch.h"
#include "core/host_device.h"

namespace deepclust {
namespace {

// Elements of a matrix from which on threads share it: as many as torch gives to one thread of an elementwise
// operation. Their exponentials take several times as long as it takes to wake a thread.
constexpr int64_t kParallelElements = 1 << 15;
// Rows whose column sums are added up apart: these take 1/64 of the matrix, 1/512 with few clusters, in memory and in
// the time to merge them, and there are still chunks for threads to share. Both are multiples of the lanes of vectors.
constexpr int64_t kChunkRows = 64;
constexpr int64_t kChunkRowsOfFew = 512;
// Largest s / epsilon: whole numbers of that size, and sums of several, have no rounding in float32, and in double what
// is beside them keeps 32 bits.
constexpr double kLargestLogit = 0x1p20;
// Where masks lie, in units of kLargestLogit below 0. The largest element of a row that counts is not far below -1 of
// them, and what columns are shifted by does not make up for the other 7.
constexpr int kMaskedLogits = 8;
// A row is lifted if it is this far below the largest of every column. Such a row counts nothing at first, because its
// exponentials are 0: exp(-104) is 0 in float32, exp(-746) in double. The distance is no larger than it must be,
// because the numbers of a lifted row are about this large, which leaves fewer digits for their differences.
template <typename T>
constexpr double kLiftedLogit = sizeof(T) == 4 ? 128 : 1024;

// Shares that add up to 1, followed by zeros up to whole vectors; empty if they are no shares.
template <typename T>
std::vector<T> normalize_shares(const T* shares /* (count,) or null */, int64_t count) {
  std::vector<T> result(Scratch<T>::size_of(count));
  std::fill(result.begin(), result.begin() + count, static_cast<T>(1.0 / static_cast<double>(count)));
  if (shares == nullptr) return result;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!(shares[i] >= 0)) return {};
    sum += shares[i];
  }
  if (!(sum > 0 && sum <= std::numeric_limits<double>::max())) return {};
  for (int64_t i = 0; i < count; ++i) result[i] = static_cast<T>(shares[i] / sum);
  return result;
}

// A problem of this size, without scores so far.
template <typename T>
SinkhornProblem<T> problem_of(int64_t samples, int64_t clusters, double epsilon) {
  const double inverse = std::min(1 / epsilon, static_cast<double>(std::numeric_limits<T>::max()));
  const T rounded = static_cast<T>(inverse);
  return {samples, clusters, DEEPCLUST_SELECT(padded_columns<T>)(clusters),
          nullptr, rounded,  static_cast<T>(inverse - static_cast<double>(rounded))};
}

// Where s / epsilon is too large: takes scores that are not, and that have the same assignments. A column whose
// largest score is far from 0 counts from that, which v takes up. A row far below all columns' largest is lifted
// close to them, which u takes up: at first it counts nothing before and after. What remains far below is masked.
// False if a score is not finite.
template <typename T>
bool bound_scores(SinkhornProblem<T>& in, const std::vector<T>& r, const std::vector<T>& c,
                  std::vector<T>& bounded  // memory for the scores (N, K)
) {
  const T lowest = std::numeric_limits<T>::lowest();
  const double epsilon = 1 / static_cast<double>(in.inverse_epsilon), limit = kLargestLogit * epsilon;
  // The largest score of every column, over rows that count.
  std::vector<T> tops(in.clusters, lowest);
  for (int64_t n = 0; n < in.samples; ++n) {
    for (int64_t k = 0; k < in.clusters; ++k) {
      const T score = in.scores[n * in.clusters + k];
      if (!std::isfinite(score)) return false;
      if (r[n] > 0) tops[k] = std::max(tops[k], score);
    }
  }
  // What columns count from, the center nearest to 0, and how far down a row may be before it is lifted.
  std::vector<T> centers(in.clusters, T(0));
  double floor = limit, common = std::numeric_limits<double>::infinity();
  for (int64_t k = 0; k < in.clusters; ++k) {
    if (std::fabs(tops[k]) > limit) centers[k] = tops[k];
    if (c[k] == 0) continue;
    floor = std::min<double>(floor, tops[k] - centers[k]);
    if (std::fabs(centers[k]) < std::fabs(common)) common = centers[k];
  }
  // A multiple of a power of two: what is lifted there has no more digits than before.
  const double unit = std::exp2(std::ceil(std::log2(epsilon)));
  floor = unit * (std::floor(floor / unit) - kLiftedLogit<T>);
  // Rows less the centers, lifted, masked.
  bounded.resize(in.samples * in.clusters);
  const double lowest_double = std::numeric_limits<double>::lowest();
  std::vector<double> row(in.clusters), lifted(in.clusters);
  for (int64_t n = 0; n < in.samples; ++n) {
    const T* scores = in.scores + n * in.clusters;
    double largest = lowest_double, largest_lifted = lowest_double;
    T top = lowest;
    for (int64_t k = 0; k < in.clusters; ++k) {
      if (c[k] > 0) top = std::max(top, scores[k]);
    }
    for (int64_t k = 0; k < in.clusters; ++k) {
      row[k] = std::max(static_cast<double>(scores[k]) - centers[k], lowest_double);
      row[k] = std::min(row[k], limit);  // above it is but a row of share 0
      // What all of the row has and what all centers have are gone before they meet, beside which digits would be lost.
      lifted[k] = (static_cast<double>(scores[k]) - top) - (static_cast<double>(centers[k]) - common);
      lifted[k] = std::clamp(lifted[k], lowest_double, -lowest_double);
      if (c[k] == 0) continue;
      largest = std::max(largest, row[k]);
      largest_lifted = std::max(largest_lifted, lifted[k]);
    }
    for (int64_t k = 0; k < in.clusters; ++k) {
      const double score = largest < floor ? lifted[k] - largest_lifted + floor : row[k];
      bounded[n * in.clusters + k] = static_cast<T>(std::clamp(score, -kMaskedLogits * limit, limit));
    }
  }
  in.scores = bounded.data();
  return true;
}

// Passes over the rows of a problem in chunks, of which each adds up its column sums apart. Chunks depend on the sizes
// alone and are merged in order, so that sums do not depend on the number of threads.
template <typename T>
class RowChunks {
 public:
  RowChunks(int64_t samples, int64_t clusters, int64_t stride)
      : samples_(samples),
        stride_(stride),
        rows_(clusters > kFewClusters ? kChunkRows : kChunkRowsOfFew),
        count_(divide_up(samples, rows_)),
        memory_(Scratch<T>::size_of(count_ * stride_)),
        parts_(memory_.take(count_ * stride_)),
        sums_(clusters) {}

  int64_t count() const { return count_; }
  const std::vector<double>& sums() const { return sums_; }  // (K,) that were merged last

  // Calls use(chunk, begin, end) for all chunks of rows, in turn from the first and from the last of every thread: what
  // a pass read last is in cache for the next one.
  template <typename Use>
  void for_each(const Use& use) {
    const int64_t grain = std::max<int64_t>(1, kParallelElements / (rows_ * stride_));
    at::parallel_for(0, count_, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t chunk = from_last_ ? first + last - 1 - i : i;
        use(chunk, chunk * rows_, std::min((chunk + 1) * rows_, samples_));
      }
    });
    from_last_ = !from_last_;
  }

  // The column sums of a chunk, (stride,), set to one value.
  T* fill(int64_t chunk, T value) {
    std::fill(parts_ + chunk * stride_, parts_ + (chunk + 1) * stride_, value);
    return parts_ + chunk * stride_;
  }

  // Adds up the column sums of all chunks, each times scale(chunk).
  template <typename Scale>
  void merge(const Scale& scale) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    for (int64_t chunk = 0; chunk < count_; ++chunk) {
      const double factor = scale(chunk);
      for (size_t k = 0; k < sums_.size(); ++k) sums_[k] += factor * parts_[chunk * stride_ + k];
    }
  }
  void merge() {
    merge([](int64_t) { return 1.0; });
  }

  // The largest of all chunks, where they hold values instead of sums.
  void merge_largest(T* largest /* (stride,) */) const {
    std::copy(parts_, parts_ + stride_, largest);
    for (int64_t chunk = 1; chunk < count_; ++chunk) {
      for (int64_t k = 0; k < stride_; ++k) largest[k] = std::max(largest[k], parts_[chunk * stride_ + k]);
    }
  }

 private:
  int64_t samples_, stride_;
  int64_t rows_, count_;  // of a chunk; chunks
  Scratch<T> memory_;
  T* parts_;  // (chunks, stride)
  std::vector<double> sums_;
  bool from_last_ = false;
};

}  // namespace
}  // namespace deepclust

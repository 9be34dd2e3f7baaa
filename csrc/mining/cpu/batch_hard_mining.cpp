// Batch-hard mining without any N x N matrix, and with one matrix product instead of two.
//
// The hardest pairs of a row are extremes of the teacher-student distances D within two classes that the
// teacher-teacher distances DT define: column j is a negative of row i if DT_ij > D_ii. Instead of computing all of DT,
// a row looks at its D in order from both ends and classifies columns one by one, by an exact DT_ij, until the first of
// each class is found. With classes unrelated to the order of D, a threshold at quantile q takes about 1/q and 1/(1-q)
// tests, a handful for most rows. Where teacher and student agree, the order does carry the class, but then few columns
// can be positives at all: DT_ij <= D_ii implies D_ij <= D_ii + D_jj, and columns beyond that are never looked at. Rows
// that stay open get the second product after all.
//
// Scores from a product only rule columns out, with a bound on their rounding. What remains is decided by distances
// summed over squared differences, DT for the class and D for the order, ties to the lowest index; so neither the way a
// row took nor the instruction set shows in the result. Cost: N D multiply-adds for a row, 2 N D for one left open, and
// O(N D) memory for all.
#include "mining/cpu/batch_hard_mining.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/constants.h"
#include "core/cpu/scratch.h"
#include "core/dtypes.h"
#include "core/host_device.h"
#include "mining/batch_hard_mining.h"
#include "mining/cpu/pair_gradient.h"

namespace deepclust {
namespace {

// Rows that are mined together at most, but for rounding up to whole row panels: every panel of columns is read once
// for so many. More would save little and leave less work for other threads.
constexpr int64_t kMaxBlockRows = 64;
// Elements of these rows at most, which are read again for every panel: a quarter of a common second cache in float32.
constexpr int64_t kMaxBlockElements = int64_t{1} << 16;
// Scores of these rows at most: 16 MB of float32 for a thread.
constexpr int64_t kMaxScoreElements = int64_t{1} << 22;
// Rows whose mean is the shift. Any point is correct, and of so many rows the mean is near enough that of all.
constexpr int64_t kShiftSample = 32;
// A row takes kMinTests + N / kColumnsPerTest tests before it asks for the product: one in 64 columns may be tested in
// vain, and some tests are worth trying however few columns there are.
constexpr int64_t kMinTests = 16;
constexpr int64_t kColumnsPerTest = 64;

// What the kernels read. Rows are normalized; "centered" quantities are relative to `shift`, which cancels in
// distances.
template <typename T>
struct MiningInputs {
  int64_t count;                  // N
  int64_t depth;                  // D
  int64_t padded;                 // N rounded up to whole column panels
  const T* teacher;               // (N, D)
  const T* student;               // (N, D)
  const T* shift;                 // (D,)
  const T* teacher_panels;        // (padded, D) packed, centered
  const T* teacher_bias;          // (padded,)
  const T* student_panels;        // (padded, D) packed, centered
  const T* student_bias;          // (padded,)
  const T* self_squared;          // (padded,) clamped D_jj^2
  const T* self_distance;         // (padded,) D_jj
  const T* teacher_norm_squared;  // (N,) centered
  T self_distance_max;
  T teacher_norm_max;  // centered
  T student_norm_max;  // centered
  T rounding;          // bound on the relative error of a score
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "mining/cpu/batch_hard_mining.inl"
#include "core/cpu/foreach_capability.h"

namespace deepclust {
namespace {

// A point amid the teacher rows: the mean of an even sample, normalized like the rows. Any point is correct; the nearer
// the rows are to it, the smaller the rounding of the scores, so that offset or nearly collapsed batches stay exact.
template <typename T>
void choose_shift(const T* teacher,  // (count, depth)
                  int64_t count, int64_t depth, bool normalize,
                  T* row,   // (depth,) scratch
                  T* shift  // (depth,)
) {
  std::fill(shift, shift + depth, T(0));
  const int64_t sample = std::min(count, kShiftSample);
  for (int64_t i = 0; i < sample; ++i) {
    const T* source = teacher + i * count / sample * depth;
    T inverse_norm;
    DEEPCLUST_SELECT(normalize_rows<T>)(source, 1, depth, normalize, row, &inverse_norm);
    if (normalize) source = row;
    for (int64_t k = 0; k < depth; ++k) shift[k] += source[k] / sample;
  }
}

// The search, in the five phases that mine() calls one after the other. They share memory for all rows, O(N D).
template <typename T>
class Search {
 public:
  Search(const at::Tensor& teacher, const at::Tensor& student, bool normalize, RowRange anchors, MinedPairs& mined)
      : count_(teacher.size(0)),
        depth_(teacher.size(1)),
        width_(DEEPCLUST_SELECT(panel_columns<T>)()),
        padded_(round_up(count_, width_)),
        normalize_(normalize),
        anchors_(anchors),
        teacher_source_(teacher.const_data_ptr<T>()),
        student_source_(student.const_data_ptr<T>()),
        index_(mined.index.mutable_data_ptr<int64_t>()),
        distance_(mined.distance.mutable_data_ptr<T>()),
        inverse_distance_(mined.inverse_distance.mutable_data_ptr<T>()),
        inverse_norm_(mined.inverse_norm.mutable_data_ptr<T>()),
        scratch_(2 * size_of(padded_ * depth_) + 2 * size_of(rows_size()) + 2 * size_of(depth_) + 5 * size_of(padded_) +
                 size_of(4 * count_)),
        teacher_panels_(scratch_.take(padded_ * depth_)),
        student_panels_(scratch_.take(padded_ * depth_)),
        teacher_rows_(scratch_.take(rows_size())),
        student_rows_(scratch_.take(rows_size())),
        teacher_bias_(scratch_.take(padded_)),
        student_bias_(scratch_.take(padded_)),
        self_squared_(scratch_.take(padded_)),
        self_distance_(scratch_.take(padded_)),
        teacher_norm_squared_(scratch_.take(padded_)),
        shift_(scratch_.take(depth_)),
        squared_(scratch_.take(4 * count_)) {}

  // Phase 1: a point amid the teacher rows, which is subtracted from teacher and student rows when they are packed.
  void center() { choose_shift(teacher_source_, count_, depth_, normalize_, scratch_.take(depth_), shift_); }

  // Phase 2: normalizes and packs all rows, panel by panel, and computes their D_jj and norms; false if a row is not
  // finite.
  bool prepare_rows() {
    std::atomic<bool> finite{true};
    at::parallel_for(0, padded_ / width_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * width_; first < end * width_; first += width_) {
        if (!prepare_panel(first)) finite = false;
      }
    });
    return finite;
  }

  // Phase 3: the largest norms and D_jj, from which follow the bounds on a score's error and on a positive's distance.
  void bound_scores() {
    in_ = {.count = count_,
           .depth = depth_,
           .padded = padded_,
           .teacher = teacher(),
           .student = student(),
           .shift = shift_,
           .teacher_panels = teacher_panels_,
           .teacher_bias = teacher_bias_,
           .student_panels = student_panels_,
           .student_bias = student_bias_,
           .self_squared = self_squared_,
           .self_distance = self_distance_,
           .teacher_norm_squared = teacher_norm_squared_,
           .self_distance_max = T(0),
           .teacher_norm_max = T(0),
           .student_norm_max = T(0),
           .rounding = (depth_ + 32) * std::numeric_limits<T>::epsilon() / 2};
    for (int64_t j = 0; j < count_; ++j) {
      in_.self_distance_max = std::max(in_.self_distance_max, self_distance_[j]);
      in_.teacher_norm_max = std::max(in_.teacher_norm_max, teacher_norm_squared_[j]);
      in_.student_norm_max = std::max(in_.student_norm_max, -2 * student_bias_[j]);
    }
    in_.teacher_norm_max = std::sqrt(in_.teacher_norm_max);
    in_.student_norm_max = std::sqrt(in_.student_norm_max);
  }

  // Phase 4: the hardest pairs of the anchors, one block of rows after the other.
  void mine_blocks() {
    const int64_t threads = at::get_num_threads();
    const int64_t block_rows = DEEPCLUST_SELECT(mining_block_rows<T>)(anchors_.count, count_, depth_, threads);
    const int64_t blocks = divide_up(anchors_.count, block_rows);
    const int64_t limit = kMinTests + count_ / kColumnsPerTest;
    const int64_t workspace = DEEPCLUST_SELECT(mining_workspace<T>)(block_rows, padded_, depth_);
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(workspace);
      T* memory = scratch.take(workspace);
      bool expect_product = false;
      for (int64_t row = begin * block_rows; row < std::min(end * block_rows, anchors_.count); row += block_rows) {
        DEEPCLUST_SELECT(mine_rows<T>)(in_, anchors_.first + row, std::min(block_rows, anchors_.count - row), limit,
                                       memory, &expect_product, index_, index_ + count_, squared_);
      }
    });
  }

  // Phase 5: the distances of the pairs and their inverses. Squared distances that phase 4 has not computed are
  // computed now.
  void measure() {
    at::parallel_for(anchors_.first, anchors_.first + anchors_.count, 64, [&](int64_t begin, int64_t end) {
      for (int64_t kind = 0; kind < 4; ++kind) {
        DEEPCLUST_SELECT(measure_pairs<T>)(teacher(), kind < 2 ? student() : teacher(), begin, end, depth_,
                                           index_ + kind % 2 * count_, squared_ + kind * count_,
                                           distance_ + kind * count_, inverse_distance_ + kind * count_);
      }
    });
  }

 private:
  static constexpr auto size_of = Scratch<T>::size_of;
  int64_t rows_size() const { return normalize_ ? count_ * depth_ : 0; }
  const T* teacher() const { return normalize_ ? teacher_rows_ : teacher_source_; }
  const T* student() const { return normalize_ ? student_rows_ : student_source_; }

  bool prepare_panel(int64_t first) {
    const int64_t present = std::min(width_, count_ - first);
    const int64_t offset = first * depth_;
    const int64_t row_offset = normalize_ ? offset : 0;
    const auto normalize_panel = [&](const T* source, T* rows, T* norms) {
      return DEEPCLUST_SELECT(normalize_rows<T>)(source + offset, present, depth_, normalize_, rows + row_offset,
                                                 norms + first);
    };
    const bool teacher_is_finite = normalize_panel(teacher_source_, teacher_rows_, inverse_norm_);
    const bool student_is_finite = normalize_panel(student_source_, student_rows_, inverse_norm_ + count_);
    DEEPCLUST_SELECT(measure_rows<T>)(teacher() + offset, student() + offset, shift_, present, width_, depth_,
                                      self_squared_ + first, self_distance_ + first, teacher_norm_squared_ + first);
    DEEPCLUST_SELECT(pack_distance_columns<T>)(teacher(), shift_, first, count_, depth_, teacher_panels_ + offset,
                                               teacher_bias_ + first);
    DEEPCLUST_SELECT(pack_distance_columns<T>)(student(), shift_, first, count_, depth_, student_panels_ + offset,
                                               student_bias_ + first);
    return teacher_is_finite && student_is_finite;
  }

  int64_t count_, depth_;
  int64_t width_, padded_;  // columns of a panel; N rounded up to whole panels
  bool normalize_;
  RowRange anchors_;
  const T *teacher_source_, *student_source_;
  int64_t* index_;                                   // (2, N)
  T *distance_, *inverse_distance_, *inverse_norm_;  // (4, N), (4, N), (2, N)
  Scratch<T> scratch_;
  T *teacher_panels_, *student_panels_, *teacher_rows_, *student_rows_, *teacher_bias_, *student_bias_;
  T *self_squared_, *self_distance_, *teacher_norm_squared_, *shift_;
  T* squared_;  // (4, N)
  MiningInputs<T> in_;
};

template <typename T>
MinedPairs mine(const at::Tensor& teacher, const at::Tensor& student, bool normalize, RowRange anchors) {
  const int64_t count = teacher.size(0);
  const at::TensorOptions options = teacher.options();
  MinedPairs mined{at::empty({2, count}, options.dtype(at::kLong)), at::empty({4, count}, options),
                   at::empty({4, count}, options), at::empty({2, count}, options)};
  // Without anchors there are no pairs.
  if (count == 0 || anchors.count == 0) {
    mined.inverse_norm.fill_(1);  // not used, since no row is in a pair
    return mined;
  }
  Search<T> search(teacher, student, normalize, anchors, mined);
  // Phases 1 and 2: the rows, normalized, shifted and packed. If one is not finite, no anchor has a pair.
  search.center();
  if (!search.prepare_rows()) {
    mined.index.fill_(-1);
    mined.distance.fill_(std::numeric_limits<double>::quiet_NaN());
    mined.inverse_distance.fill_(std::numeric_limits<double>::quiet_NaN());
    return mined;
  }
  // Phases 3 and 4: the hardest negative n_i and the hardest positive p_i of every anchor. Scores rule columns out, and
  // exact distances decide among the others.
  search.bound_scores();
  search.mine_blocks();
  // Phase 5: D and DT of the pairs, and their inverses.
  search.measure();
  return mined;
}

}  // namespace

MinedPairs mine_hard_pairs(const at::Tensor& teacher, const at::Tensor& student, bool normalize, RowRange anchors) {
  return teacher.scalar_type() == at::kDouble ? mine<double>(teacher, student, normalize, anchors)
                                              : mine<float>(teacher, student, normalize, anchors);
}

namespace {

BatchHardMiningOutputs batch_hard_mining_cpu(const at::Tensor& teacher,  // (N, D)
                                             const at::Tensor& student,  // (N, D)
                                             bool normalize, int64_t first_row, std::optional<int64_t> num_rows) {
  check_batch_hard_mining(teacher, student);
  const RowRange anchors = row_range(first_row, num_rows, teacher.size(0));
  const MinedPairs mined = mine_hard_pairs(to_accumulation(teacher), to_accumulation(student), normalize, anchors);
  const at::Tensor distance = to_dtype(mined.distance, teacher.scalar_type());
  // Outputs may not alias, so each is a copy; select().clone() would cost small calls more than the mining does.
  const auto row = [anchors](const at::Tensor& rows, int64_t i) {
    const at::Tensor copy = at::empty({anchors.count}, rows.options());
    const int64_t begin = (i * rows.size(1) + anchors.first) * rows.element_size();
    if (anchors.count > 0) {
      std::memcpy(copy.mutable_data_ptr(), static_cast<const char*>(rows.const_data_ptr()) + begin, copy.nbytes());
    }
    return copy;
  };
  const at::Tensor inverse_distance = mined.inverse_distance.narrow(1, anchors.first, anchors.count).contiguous();
  return {row(distance, 0),    row(distance, 1),    row(distance, 2), row(distance, 3),
          row(mined.index, 0), row(mined.index, 1), inverse_distance, mined.inverse_norm};
}

std::tuple<at::Tensor, at::Tensor> batch_hard_mining_backward_cpu(
    const at::Tensor& grad_positive_distance,          // (R,)
    const at::Tensor& grad_negative_distance,          // (R,)
    const at::Tensor& grad_positive_teacher_distance,  // (R,)
    const at::Tensor& grad_negative_teacher_distance,  // (R,)
    const at::Tensor& teacher,                         // (N, D)
    const at::Tensor& student,                         // (N, D)
    const at::Tensor& positive_index,                  // (R,) int64
    const at::Tensor& negative_index,                  // (R,) int64
    const at::Tensor& inverse_distance,                // (4, R)
    const at::Tensor& inverse_norm,                    // (2, N)
    bool normalize, int64_t first_row, bool want_teacher, bool want_student) {
  const at::Tensor weight =
      to_accumulation(at::stack({grad_positive_distance, grad_negative_distance, grad_positive_teacher_distance,
                                 grad_negative_teacher_distance}));
  const int64_t count = teacher.size(0);
  const at::Tensor slope = values_of_all(weight.mul(inverse_distance), first_row, count);
  const at::Tensor index =
      at::stack({index_of_all(positive_index, first_row, count), index_of_all(negative_index, first_row, count)});
  const auto [grad_teacher, grad_student] = pair_gradient(to_accumulation(teacher), to_accumulation(student), index,
                                                          inverse_norm, slope, normalize, want_teacher, want_student);
  return {to_dtype(grad_teacher, teacher.scalar_type()), to_dtype(grad_student, teacher.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("batch_hard_mining", batch_hard_mining_cpu);
  m.impl("batch_hard_mining_backward", batch_hard_mining_backward_cpu);
}

}  // namespace deepclust

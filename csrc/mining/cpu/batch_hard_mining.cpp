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
#include "mining/batch_hard_mining.h"
#include "mining/cpu/pair_gradient.h"

namespace deepclust {
namespace {

constexpr int64_t kMaxBlockRows = 64;
constexpr int64_t kMaxBlockElements = int64_t{1} << 16;  // rows x depth, a quarter of a common L2 cache
constexpr int64_t kMaxScoreElements = int64_t{1} << 22;  // rows x columns, 16 MB of float scores for a thread
constexpr int64_t kShiftSample = 32;
constexpr int64_t kMinTests = 16;  // a row takes kMinTests + N / kColumnsPerTest tests before it asks for the product
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

template <typename T>
MinedPairs mine(const at::Tensor& teacher_input, const at::Tensor& student_input, bool normalize, RowRange anchors) {
  const int64_t count = teacher_input.size(0);
  const int64_t depth = teacher_input.size(1);
  const at::TensorOptions options = teacher_input.options();
  MinedPairs mined{at::empty({2, count}, options.dtype(at::kLong)), at::empty({4, count}, options),
                   at::empty({4, count}, options), at::empty({2, count}, options)};
  if (count == 0 || anchors.count == 0) {
    mined.inverse_norm.fill_(1);  // of rows that are in no pair
    return mined;
  }
  int64_t* index = mined.index.mutable_data_ptr<int64_t>();
  T* distance = mined.distance.mutable_data_ptr<T>();
  T* inverse_distance = mined.inverse_distance.mutable_data_ptr<T>();
  T* inverse_norm = mined.inverse_norm.mutable_data_ptr<T>();

  const int64_t width = DEEPCLUST_SELECT(panel_columns<T>)();
  const int64_t panels = (count + width - 1) / width;
  const int64_t padded = panels * width;
  const int64_t rows_size = normalize ? count * depth : 0;
  const auto size_of = Scratch<T>::size_of;
  Scratch<T> scratch(2 * size_of(padded * depth) + 2 * size_of(rows_size) + 2 * size_of(depth) + 5 * size_of(padded) +
                     size_of(4 * count));
  T* teacher_panels = scratch.take(padded * depth);
  T* student_panels = scratch.take(padded * depth);
  T* teacher_rows = scratch.take(rows_size);
  T* student_rows = scratch.take(rows_size);
  T* teacher_bias = scratch.take(padded);
  T* student_bias = scratch.take(padded);
  T* self_squared = scratch.take(padded);
  T* self_distance = scratch.take(padded);
  T* teacher_norm_squared = scratch.take(padded);
  T* shift = scratch.take(depth);
  T* squared = scratch.take(4 * count);
  const T* teacher_source = teacher_input.const_data_ptr<T>();
  const T* student_source = student_input.const_data_ptr<T>();
  const T* teacher = normalize ? teacher_rows : teacher_source;
  const T* student = normalize ? student_rows : student_source;

  choose_shift(teacher_source, count, depth, normalize, scratch.take(depth), shift);
  std::atomic<bool> finite{true};
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * width; first < end * width; first += width) {
      const int64_t present = std::min(width, count - first);
      const int64_t offset = first * depth;
      const int64_t row_offset = normalize ? offset : 0;
      const auto normalize_panel = [&](const T* source, T* rows, T* norms) {
        return DEEPCLUST_SELECT(normalize_rows<T>)(source + offset, present, depth, normalize, rows + row_offset,
                                                   norms + first);
      };
      if (!normalize_panel(teacher_source, teacher_rows, inverse_norm)) finite = false;
      if (!normalize_panel(student_source, student_rows, inverse_norm + count)) finite = false;
      DEEPCLUST_SELECT(measure_rows<T>)(teacher + offset, student + offset, shift, present, width, depth,
                                        self_squared + first, self_distance + first, teacher_norm_squared + first);
      DEEPCLUST_SELECT(pack_distance_columns<T>)(teacher, shift, first, count, depth, teacher_panels + offset,
                                                 teacher_bias + first);
      DEEPCLUST_SELECT(pack_distance_columns<T>)(student, shift, first, count, depth, student_panels + offset,
                                                 student_bias + first);
    }
  });
  if (!finite) {
    mined.index.fill_(-1);
    mined.distance.fill_(std::numeric_limits<double>::quiet_NaN());
    mined.inverse_distance.fill_(std::numeric_limits<double>::quiet_NaN());
    return mined;
  }

  MiningInputs<T> in{.count = count,
                     .depth = depth,
                     .padded = padded,
                     .teacher = teacher,
                     .student = student,
                     .shift = shift,
                     .teacher_panels = teacher_panels,
                     .teacher_bias = teacher_bias,
                     .student_panels = student_panels,
                     .student_bias = student_bias,
                     .self_squared = self_squared,
                     .self_distance = self_distance,
                     .teacher_norm_squared = teacher_norm_squared,
                     .self_distance_max = T(0),
                     .teacher_norm_max = T(0),
                     .student_norm_max = T(0),
                     .rounding = (depth + 32) * std::numeric_limits<T>::epsilon() / 2};
  for (int64_t j = 0; j < count; ++j) {
    in.self_distance_max = std::max(in.self_distance_max, self_distance[j]);
    in.teacher_norm_max = std::max(in.teacher_norm_max, teacher_norm_squared[j]);
    in.student_norm_max = std::max(in.student_norm_max, -2 * student_bias[j]);
  }
  in.teacher_norm_max = std::sqrt(in.teacher_norm_max);
  in.student_norm_max = std::sqrt(in.student_norm_max);

  const int64_t block_rows = DEEPCLUST_SELECT(mining_block_rows<T>)(count, depth, at::get_num_threads());
  const int64_t blocks = (anchors.count + block_rows - 1) / block_rows;
  const int64_t limit = kMinTests + count / kColumnsPerTest;
  const int64_t workspace = DEEPCLUST_SELECT(mining_workspace<T>)(block_rows, padded, depth);
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> thread_scratch(workspace);
    T* memory = thread_scratch.take(workspace);
    bool expect_product = false;
    for (int64_t row = begin * block_rows; row < std::min(end * block_rows, anchors.count); row += block_rows) {
      DEEPCLUST_SELECT(mine_rows<T>)(in, anchors.first + row, std::min(block_rows, anchors.count - row), limit, memory,
                                     &expect_product, index, index + count, squared);
    }
  });
  at::parallel_for(anchors.first, anchors.first + anchors.count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t kind = 0; kind < 4; ++kind) {
      DEEPCLUST_SELECT(measure_pairs<T>)(teacher, kind < 2 ? student : teacher, begin, end, depth,
                                         index + kind % 2 * count, squared + kind * count, distance + kind * count,
                                         inverse_distance + kind * count);
    }
  });
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

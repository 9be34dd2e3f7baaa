// Each thread has rows of its own, and adds up the pairs that end in them, in the order of their anchors: no locks and
// no atomics, and one order of sums. So pairs are grouped by target first, O(N). Each pair costs a row of D.
#include "mining/cpu/pair_gradient.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/constants.h"

#define DEEPCLUST_KERNEL_FILE "mining/cpu/pair_gradient.inl"
#include "core/cpu/foreach_capability.h"

namespace deepclust {
namespace {

constexpr int64_t kPairsAhead = 8;  // rows that are on their way: together they take up a quarter of the nearest cache
constexpr int64_t kPrefetchedBytes = 1024;  // of a row

// The pairs that end in each row: those of row j are order[begin[j]] ... order[begin[j + 1] - 1], ascending.
struct PairsByTarget {
  std::vector<int64_t> begin;
  std::vector<int64_t> order;
};

PairsByTarget group_by_target(const int64_t* index /* (2 * count,) */, int64_t count) {
  PairsByTarget pairs{std::vector<int64_t>(count + 2), std::vector<int64_t>(2 * count)};
  for (int64_t pair = 0; pair < 2 * count; ++pair) {
    if (index[pair] >= 0) ++pairs.begin[index[pair] + 2];
  }
  for (int64_t j = 2; j <= count; ++j) pairs.begin[j] += pairs.begin[j - 1];
  for (int64_t pair = 0; pair < 2 * count; ++pair) {
    if (index[pair] >= 0) pairs.order[pairs.begin[index[pair] + 1]++] = pair;
  }
  return pairs;
}

template <typename T>
struct Rows {
  const T* value;  // (N, D)
  const T* scale;  // (N,) inverse norms
  int64_t depth;
};

// The anchor of a pair: pairs are numbered kind by kind.
int64_t anchor_of(int64_t pair, int64_t count) { return pair < count ? pair : pair - count; }

// Asks for a row that is read soon. The rows of pairs lie all over memory, where no processor foresees them; once a row
// is being read, it foresees the rest of it.
template <typename T>
void prefetch_row(const Rows<T>& rows, int64_t i) {
  const char* row = reinterpret_cast<const char*>(rows.value + i * rows.depth);
  const int64_t bytes = std::min<int64_t>(rows.depth * sizeof(T), kPrefetchedBytes);
  for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte);
}

// gradient += slope * (x_i - y_j), both normalized
template <typename T>
void add_pair(T* gradient /* (D,) */, const Rows<T>& x, int64_t i, const Rows<T>& y, int64_t j, T slope) {
  DEEPCLUST_SELECT(add_scaled_difference<T>)
  (gradient, x.value + i * x.depth, x.scale[i], y.value + j * y.depth, y.scale[j], slope, x.depth);
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> pair_gradient_of(const at::Tensor& teacher_input, const at::Tensor& student_input,
                                                    const at::Tensor& index_input, const at::Tensor& inverse_norm,
                                                    const at::Tensor& slope_input, bool normalize, bool want_teacher,
                                                    bool want_student) {
  const int64_t count = teacher_input.size(0);
  const int64_t depth = teacher_input.size(1);
  const Rows<T> teacher{teacher_input.const_data_ptr<T>(), inverse_norm.const_data_ptr<T>(), depth};
  const Rows<T> student{student_input.const_data_ptr<T>(), inverse_norm.const_data_ptr<T>() + count, depth};
  const int64_t* index = index_input.const_data_ptr<int64_t>();
  const T* slope = slope_input.const_data_ptr<T>();
  const T* teacher_slope = slope_input.size(0) == 4 ? slope + 2 * count : nullptr;
  const at::TensorOptions options = teacher_input.options();
  const bool want_into_teacher = want_teacher && teacher_slope != nullptr;
  const PairsByTarget pairs = want_student || want_into_teacher ? group_by_target(index, count) : PairsByTarget{};

  const at::Tensor grad_teacher = want_teacher ? at::empty({count, depth}, options) : at::empty({0}, options);
  const at::Tensor grad_student = want_student ? at::empty({count, depth}, options) : at::empty({0}, options);
  T* into_teacher = want_teacher ? grad_teacher.mutable_data_ptr<T>() : nullptr;
  T* into_student = want_student ? grad_student.mutable_data_ptr<T>() : nullptr;
  const int64_t ends = pairs.begin.empty() ? 0 : pairs.begin[count];
  at::parallel_for(0, count, 16, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      // A student's row: the pairs that it is the target of, in their order.
      if (want_student) {
        T* gradient = into_student + row * depth;
        std::fill(gradient, gradient + depth, T(0));
        for (int64_t p = pairs.begin[row]; p < pairs.begin[row + 1]; ++p) {
          if (p + kPairsAhead < ends) prefetch_row(teacher, anchor_of(pairs.order[p + kPairsAhead], count));
          const int64_t pair = pairs.order[p];
          add_pair(gradient, student, row, teacher, anchor_of(pair, count), slope[pair]);
        }
        if (normalize) {
          DEEPCLUST_SELECT(project_gradient<T>)(gradient, student.value + row * depth, student.scale[row], depth);
        }
      }
      // A teacher's row: the pairs of its own anchor and, if teacher distances have slopes, those that it is the target
      // of.
      if (want_teacher) {
        T* gradient = into_teacher + row * depth;
        std::fill(gradient, gradient + depth, T(0));
        for (int64_t pair = row; pair < 2 * count; pair += count) {
          if (index[pair] < 0) continue;
          add_pair(gradient, teacher, row, student, index[pair], slope[pair]);
          if (want_into_teacher) add_pair(gradient, teacher, row, teacher, index[pair], teacher_slope[pair]);
        }
        for (int64_t p = want_into_teacher ? pairs.begin[row] : 0; want_into_teacher && p < pairs.begin[row + 1]; ++p) {
          const int64_t pair = pairs.order[p];
          add_pair(gradient, teacher, row, teacher, anchor_of(pair, count), teacher_slope[pair]);
        }
        if (normalize) {
          DEEPCLUST_SELECT(project_gradient<T>)(gradient, teacher.value + row * depth, teacher.scale[row], depth);
        }
      }
    }
  });
  return {grad_teacher, grad_student};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> pair_gradient(const at::Tensor& teacher, const at::Tensor& student,
                                                 const at::Tensor& index, const at::Tensor& inverse_norm,
                                                 const at::Tensor& slope, bool normalize, bool want_teacher,
                                                 bool want_student) {
  if (index.numel() > 0 && index.const_data_ptr<int64_t>()[0] < 0) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    return {want_teacher ? at::full_like(teacher, nan) : at::empty({0}, teacher.options()),
            want_student ? at::full_like(student, nan) : at::empty({0}, student.options())};
  }
  return teacher.scalar_type() == at::kDouble ? pair_gradient_of<double>(teacher, student, index, inverse_norm, slope,
                                                                         normalize, want_teacher, want_student)
                                              : pair_gradient_of<float>(teacher, student, index, inverse_norm, slope,
                                                                        normalize, want_teacher, want_student);
}

}  // namespace deepclust

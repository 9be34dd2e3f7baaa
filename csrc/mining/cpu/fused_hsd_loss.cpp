// The HSD loss: the pairs of mine_hard_pairs(), then the formula of a row (hsd_row.h) for all of them. Backward is
// pair_gradient() with the slopes that forward kept. O(N) beside the mining.
#include "mining/fused_hsd_loss.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "core/dtypes.h"
#include "core/host_device.h"
#include "mining/cpu/batch_hard_mining.h"
#include "mining/cpu/pair_gradient.h"
#include "mining/hsd_row.h"

namespace deepclust {
namespace {

constexpr int64_t kRowsPerSum = 512;

// Losses and slopes of all rows, and the sums over them: of fixed groups of rows, so that no thread count shows.
template <typename T>
std::array<double, kHsdSums> finish_rows(const MinedPairs& mined, double temperature,
                                         T* loss,  // (N,)
                                         T* slope  // (2, N)
) {
  const int64_t count = mined.index.size(1);
  const int64_t* index = mined.index.const_data_ptr<int64_t>();
  const T* distance = mined.distance.const_data_ptr<T>();
  const T* inverse = mined.inverse_distance.const_data_ptr<T>();
  const int64_t groups = divide_up(count, kRowsPerSum);
  std::vector<std::array<double, kHsdSums>> sums(groups);
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kRowsPerSum; i < std::min(end * kRowsPerSum, count); ++i) {
      const MinedRow<T> mined_row{.positive_index = index[i],
                                  .negative_index = index[count + i],
                                  .positive = distance[i],
                                  .negative = distance[count + i],
                                  .positive_teacher = distance[2 * count + i],
                                  .negative_teacher = distance[3 * count + i],
                                  .positive_inverse = inverse[i],
                                  .negative_inverse = inverse[count + i]};
      const HsdRow<T> row = hsd_row(mined_row, temperature, sums[i / kRowsPerSum].data());
      loss[i] = row.loss;
      slope[i] = row.positive_slope;
      slope[count + i] = row.negative_slope;
    }
  });
  std::array<double, kHsdSums> total{};
  for (const auto& group : sums) {
    for (int k = 0; k < kHsdSums; ++k) total[k] += group[k];
  }
  return total;
}

template <typename T>
FusedHsdLossOutputs loss_of(const at::Tensor& teacher, const at::Tensor& student, double temperature, bool normalize,
                            std::string_view reduction) {
  const int64_t count = teacher.size(0);
  const MinedPairs mined = mine_hard_pairs(to_accumulation(teacher), to_accumulation(student), normalize, {0, count});
  const at::TensorOptions options = mined.distance.options();
  at::Tensor loss = at::empty({count}, options);
  const at::Tensor stats = at::empty({kHsdStats}, options);
  const at::Tensor slope = at::empty({2, count}, options);
  const auto sums = finish_rows(mined, temperature, loss.mutable_data_ptr<T>(), slope.mutable_data_ptr<T>());
  hsd_stats(sums.data(), count, stats.mutable_data_ptr<T>());
  if (reduction != "none") {
    loss = at::empty({}, options);
    const double rows = reduction == "mean" ? std::max<double>(count, 1) : 1.0;
    *loss.mutable_data_ptr<T>() = static_cast<T>(sums[0] / rows);
  }
  return {to_dtype(loss, teacher.scalar_type()), stats, mined.index, slope, mined.inverse_norm};
}

FusedHsdLossOutputs fused_hsd_loss_cpu(const at::Tensor& teacher,  // (N, D)
                                       const at::Tensor& student,  // (N, D)
                                       double temperature, bool normalize, std::string_view reduction) {
  check_fused_hsd_loss(teacher, student, temperature, reduction);
  return teacher.scalar_type() == at::kDouble ? loss_of<double>(teacher, student, temperature, normalize, reduction)
                                              : loss_of<float>(teacher, student, temperature, normalize, reduction);
}

std::tuple<at::Tensor, at::Tensor> fused_hsd_loss_backward_cpu(const at::Tensor& grad_loss,     // () or (N,)
                                                               const at::Tensor& teacher,       // (N, D)
                                                               const at::Tensor& student,       // (N, D)
                                                               const at::Tensor& index,         // (2, N) int64
                                                               const at::Tensor& slope,         // (2, N)
                                                               const at::Tensor& inverse_norm,  // (2, N)
                                                               bool normalize, std::string_view reduction,
                                                               bool want_teacher, bool want_student) {
  const double divisor = reduction == "mean" ? std::max<double>(teacher.size(0), 1) : 1.0;
  const at::Tensor scaled_slope = slope.mul(to_accumulation(grad_loss).div(divisor));
  const auto [grad_teacher, grad_student] =
      pair_gradient(to_accumulation(teacher), to_accumulation(student), index, inverse_norm, scaled_slope, normalize,
                    want_teacher, want_student);
  return {to_dtype(grad_teacher, teacher.scalar_type()), to_dtype(grad_student, teacher.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("fused_hsd_loss", fused_hsd_loss_cpu);
  m.impl("fused_hsd_loss_backward", fused_hsd_loss_backward_cpu);
}

}  // namespace deepclust

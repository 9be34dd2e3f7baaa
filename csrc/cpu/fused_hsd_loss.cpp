#include "ops/fused_hsd_loss.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "common/dtypes.h"
#include "cpu/batch_hard_mining.h"
#include "cpu/pair_gradient.h"

namespace deepclust {
namespace {

struct RowLoss {
  double loss;
  double positive_slope;  // dloss/dD / D
  double negative_slope;
};

RowLoss loss_of_row(double positive_distance, double negative_distance, double positive_weight, double negative_weight,
                    double positive_inverse, double negative_inverse, double temperature) {
  const double exponent = (positive_weight * positive_distance - negative_weight * negative_distance) / temperature;
  const double decay = std::exp(-std::fabs(exponent));  // never overflows
  const double sigma = exponent > 0 ? 1 / (1 + decay) : decay / (1 + decay);
  return {std::fmax(exponent, 0.0) + std::log1p(decay), sigma * positive_weight * positive_inverse / temperature,
          -sigma * negative_weight * negative_inverse / temperature};
}

template <typename T>
void finish_rows(const MinedPairs& mined, double temperature,
                 T* loss,   // (N,)
                 T* stats,  // (5,)
                 T* slope   // (2, N)
) {
  const int64_t count = mined.index.size(1);
  const T* positive = mined.distance.const_data_ptr<T>();
  const T* negative = positive + count;
  const T* positive_teacher = negative + count;
  const T* negative_teacher = positive_teacher + count;
  const T* inverse = mined.inverse_distance.const_data_ptr<T>();
  // Weights are differences of distances in T: equal distances must cancel to exactly 0.
  const auto positive_weight = [&](int64_t i) { return std::max(positive[i] - positive_teacher[i], T(0)); };
  const auto negative_weight = [&](int64_t i) { return std::max(negative_teacher[i] - negative[i], T(0)); };
  at::parallel_for(0, count, 512, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const RowLoss row = loss_of_row(positive[i], negative[i], positive_weight(i), negative_weight(i), inverse[i],
                                      inverse[count + i], temperature);
      loss[i] = static_cast<T>(row.loss);
      slope[i] = static_cast<T>(row.positive_slope);
      slope[count + i] = static_cast<T>(row.negative_slope);
    }
  });
  const int64_t* positive_index = mined.index.const_data_ptr<int64_t>();
  const int64_t* negative_index = positive_index + count;
  int64_t no_positive = 0, no_negative = 0, no_positive_weight = 0, no_negative_weight = 0;
  double positive_sum = 0, negative_sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    no_positive += positive_index[i] < 0;
    no_negative += negative_index[i] < 0;
    no_positive_weight += positive_weight(i) == T(0);
    no_negative_weight += negative_weight(i) == T(0);
    positive_sum += positive[i];
    negative_sum += negative[i];
  }
  const double rows = std::max<double>(count, 1);
  stats[0] = static_cast<T>(no_negative_weight / rows);
  stats[1] = static_cast<T>(no_positive_weight / rows);
  stats[2] = static_cast<T>(no_negative / rows);
  stats[3] = static_cast<T>(positive_sum / std::max<double>(count - no_positive, 1));
  stats[4] = static_cast<T>(negative_sum / std::max<double>(count - no_negative, 1));
}

template <typename T>
at::Tensor reduce(const at::Tensor& losses /* (N,) */, std::string_view reduction) {
  double sum = 0;
  for (int64_t i = 0; i < losses.numel(); ++i) sum += losses.const_data_ptr<T>()[i];
  const at::Tensor loss = at::empty({}, losses.options());
  *loss.mutable_data_ptr<T>() = static_cast<T>(reduction == "mean" ? sum / std::max<double>(losses.numel(), 1) : sum);
  return loss;
}

template <typename T>
FusedHsdLossOutputs loss_of(const at::Tensor& teacher, const at::Tensor& student, double temperature, bool normalize,
                            std::string_view reduction) {
  const MinedPairs mined = mine_hard_pairs(to_accumulation(teacher), to_accumulation(student), normalize);
  const int64_t count = teacher.size(0);
  const at::TensorOptions options = mined.distance.options();
  at::Tensor loss = at::empty({count}, options);
  const at::Tensor stats = at::empty({5}, options);
  const at::Tensor slope = at::empty({2, count}, options);
  finish_rows(mined, temperature, loss.mutable_data_ptr<T>(), stats.mutable_data_ptr<T>(), slope.mutable_data_ptr<T>());
  if (reduction != "none") loss = reduce<T>(loss, reduction);
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

#include "pairs/pair_information.h"

#include <torch/library.h>

#include "core/autocast.h"
#include "core/autograd.h"
#include "core/checks.h"
#include "core/dispatch.h"

namespace deepclust {

namespace {

// (size,), dtype and device as the rows.
void check_vector(const at::Tensor& vector, const char* name, const at::Tensor& rows, const c10::SymInt& size) {
  TORCH_CHECK_VALUE(vector.dim() == 1 && vector.sym_size(0) == size, name, ": expected shape [", size, "], got ",
                    vector.sym_sizes());
  TORCH_CHECK_TYPE(vector.scalar_type() == rows.scalar_type(), name, ": expected dtype ", rows.scalar_type(),
                   " like rows, got ", vector.scalar_type());
  TORCH_CHECK_VALUE(vector.device() == rows.device(), name, ": expected device ", rows.device(), " like rows, got ",
                    vector.device());
}

}  // namespace

void check_pair_statistics(const at::Tensor& rows, const at::Tensor& weight, double temperature) {
  TORCH_CHECK_VALUE(rows.dim() == 2 && rows.sym_size(1) > 0 && rows.sym_size(0) % 2 == 0,
                    "rows: expected shape (2B, E) with E > 0, got ", rows.sym_sizes());
  check_dtype(rows, "rows");
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.sym_size(0) > 0, "weight: expected shape (K, E) with K > 0, got ",
                    weight.sym_sizes());
  check_like(weight, rows, "weight", "rows", weight.sym_size(0), rows.sym_size(1));
  check_positive(temperature, "temperature");
}

void check_pair_information(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& teacher_rows,
                            const at::Tensor& teacher_weight, const at::Tensor& distribution,
                            const at::Tensor& pair_weights, double beta, double temperature) {
  check_pair_statistics(rows, weight, temperature);
  check_like(teacher_rows, rows, "teacher_rows", "rows", rows.sym_size(0), rows.sym_size(1));
  check_like(teacher_weight, rows, "teacher_weight", "rows", weight.sym_size(0), rows.sym_size(1));
  check_vector(distribution, "distribution", rows, weight.sym_size(0));
  check_vector(pair_weights, "pair_weights", rows, rows.sym_size(0) / 2);
  check_positive(beta, "beta");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_information(
    const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& teacher_rows, const at::Tensor& teacher_weight,
    const at::Tensor& distribution, const at::Tensor& pair_weights, double beta, double temperature, bool want_rows) {
  static const auto op = find_op<decltype(pair_information)>("deepclust_ext::pair_information");
  return op.call(rows, weight, teacher_rows, teacher_weight, distribution, pair_weights, beta, temperature, want_rows);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_statistics(const at::Tensor& rows, const at::Tensor& weight,
                                                               double temperature) {
  static const auto op = find_op<decltype(pair_statistics)>("deepclust_ext::pair_statistics");
  return op.call(rows, weight, temperature);
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_information_autograd(
    const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& teacher_rows, const at::Tensor& teacher_weight,
    const at::Tensor& distribution, const at::Tensor& pair_weights, double beta, double temperature, bool want_rows) {
  check_no_tangent("pair_information", rows, weight, teacher_rows, teacher_weight, distribution, pair_weights);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return pair_information(rows, weight, teacher_rows, teacher_weight, distribution, pair_weights, beta, temperature,
                          want_rows);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_statistics_autograd(const at::Tensor& rows,
                                                                        const at::Tensor& weight, double temperature) {
  check_no_tangent("pair_statistics", rows, weight);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return pair_statistics(rows, weight, temperature);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deepclust_ext, m) {
  m.def(
      "pair_information(Tensor rows, Tensor weight, Tensor teacher_rows, Tensor teacher_weight, Tensor distribution, "
      "Tensor pair_weights, float beta=0.6, float temperature=0.1, bool want_rows=True) -> "
      "(Tensor information, Tensor grad_rows, Tensor grad_weight)");
  m.def(
      "pair_statistics(Tensor rows, Tensor weight, float temperature=0.1) -> "
      "(Tensor sums, Tensor agreement, Tensor largest)");
}

TORCH_LIBRARY_IMPL(deepclust_ext, Autograd, m) {
  m.impl("pair_information", pair_information_autograd);
  m.impl("pair_statistics", pair_statistics_autograd);
}

DEEPCLUST_AUTOCAST(pair_information)
DEEPCLUST_AUTOCAST(pair_statistics)

}  // namespace deepclust

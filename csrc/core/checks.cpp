#include "core/checks.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace deepclust {
void check_feature_pair(const at::Tensor& first, const at::Tensor& second, const char* first_name,
                        const char* second_name) {
  TORCH_CHECK_VALUE(first.dim() == 2 && first.sym_size(1) > 0, first_name, ": expected shape (N, D) with D > 0, got ",
                    first.sym_sizes());
  check_dtype(first, first_name);
  TORCH_CHECK_VALUE(second.sym_sizes() == first.sym_sizes(), second_name, ": expected shape ", first.sym_sizes(),
                    " like ", first_name, ", got ", second.sym_sizes());
  check_like(second, first, second_name, first_name, first.sym_size(0), first.sym_size(1));
}

void check_like(const at::Tensor& tensor, const at::Tensor& like, const char* name, const char* like_name,
                const c10::SymInt& rows, const c10::SymInt& columns) {
  TORCH_CHECK_VALUE(tensor.dim() == 2 && tensor.sym_size(0) == rows && tensor.sym_size(1) == columns, name,
                    ": expected shape [", rows, ", ", columns, "], got ", tensor.sym_sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, ": expected dtype ", like.scalar_type(), " like ",
                   like_name, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, ": expected device ", like.device(), " like ", like_name,
                    ", got ", tensor.device());
}

namespace {

void check_mask_or_index(const std::optional<at::Tensor>& tensor, const at::Tensor& like, const char* name,
                         const char* like_name, at::ScalarType dtype) {
  if (!tensor) return;
  TORCH_CHECK_VALUE(tensor->dim() == 1 && tensor->sym_size(0) == like.sym_size(0), name, ": expected shape [",
                    like.sym_size(0), "], one for each row of ", like_name, ", got ", tensor->sym_sizes());
  TORCH_CHECK_TYPE(tensor->scalar_type() == dtype, name, ": expected dtype ", dtype, ", got ", tensor->scalar_type());
  TORCH_CHECK_VALUE(tensor->device() == like.device(), name, ": expected device ", like.device(), " like ", like_name,
                    ", got ", tensor->device());
}

}  // namespace

void check_query_and_bank(const at::Tensor& query, const at::Tensor& bank, const std::optional<at::Tensor>& exclude,
                          const std::optional<at::Tensor>& valid) {
  TORCH_CHECK_VALUE(query.dim() == 2 && query.sym_size(1) > 0, "query: expected shape (B, D) with D > 0, got ",
                    query.sym_sizes());
  check_dtype(query, "query");
  TORCH_CHECK_VALUE(bank.dim() == 2, "bank: expected shape (M, D), got ", bank.sym_sizes());
  check_like(bank, query, "bank", "query", bank.sym_size(0), query.sym_size(1));
  check_mask_or_index(exclude, query, "exclude", "query", at::kLong);
  check_mask_or_index(valid, bank, "valid", "bank", at::kBool);
}

void check_dtype(const at::Tensor& tensor, const char* name) {
  const at::ScalarType dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, name,
                   ": expected dtype float16, bfloat16, float32 or float64, got ", dtype);
}

void check_positive(double value, const char* name) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, name, ": expected a finite number above 0, got ", value);
}

void check_reduction(std::string_view reduction) {
  TORCH_CHECK_VALUE(reduction == "none" || reduction == "mean" || reduction == "sum",
                    "reduction: expected 'none', 'mean' or 'sum', got '", reduction, "'");
}

}  // namespace deepclust

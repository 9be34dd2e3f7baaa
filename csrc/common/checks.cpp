#include "common/checks.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace deepclust {
namespace {

bool is_supported(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16;
}

}  // namespace

void check_feature_pair(const at::Tensor& first, const at::Tensor& second, const char* first_name,
                        const char* second_name) {
  TORCH_CHECK_VALUE(first.dim() == 2 && first.sym_size(1) > 0, first_name, ": expected shape (N, D) with D > 0, got ",
                    first.sym_sizes());
  TORCH_CHECK_TYPE(is_supported(first.scalar_type()), first_name,
                   ": expected dtype float16, bfloat16, float32 or float64, got ", first.scalar_type());
  TORCH_CHECK_VALUE(second.sym_sizes() == first.sym_sizes(), second_name, ": expected shape ", first.sym_sizes(),
                    " like ", first_name, ", got ", second.sym_sizes());
  TORCH_CHECK_TYPE(second.scalar_type() == first.scalar_type(), second_name, ": expected dtype ", first.scalar_type(),
                   " like ", first_name, ", got ", second.scalar_type());
  TORCH_CHECK_VALUE(second.device() == first.device(), second_name, ": expected device ", first.device(), " like ",
                    first_name, ", got ", second.device());
}

void check_positive(double value, const char* name) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, name, ": expected a finite number above 0, got ", value);
}

void check_reduction(std::string_view reduction) {
  TORCH_CHECK_VALUE(reduction == "none" || reduction == "mean" || reduction == "sum",
                    "reduction: expected 'none', 'mean' or 'sum', got '", reduction, "'");
}

}  // namespace deepclust

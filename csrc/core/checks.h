// Argument checks that every entry into an op runs, on every device; messages say argument, expected, got.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string_view>

namespace deepclust {

// Two batches of features: same shape (N, D) with D > 0, same floating dtype, same device.
void check_feature_pair(const at::Tensor& first, const at::Tensor& second, const char* first_name,
                        const char* second_name);

// `tensor`: shape (rows, columns), dtype and device as `like`, which has been checked.
void check_like(const at::Tensor& tensor, const at::Tensor& like, const char* name, const char* like_name,
                const c10::SymInt& rows, const c10::SymInt& columns);

// `query` (B, D) and `bank` (M, D) with D > 0, same floating dtype, same device; `exclude` (B,) int64 and `valid` (M,)
// bool, of that device, if given.
void check_query_and_bank(const at::Tensor& query, const at::Tensor& bank, const std::optional<at::Tensor>& exclude,
                          const std::optional<at::Tensor>& valid);

// float16, bfloat16, float32 or float64.
void check_dtype(const at::Tensor& tensor, const char* name);

// `name` must be finite and above 0.
void check_positive(double value, const char* name);

// "none", "mean" or "sum".
void check_reduction(std::string_view reduction);

}  // namespace deepclust

// Outputs of some of N rows, as outputs of all rows of which the others have no pair.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace deepclust {

// Rows first ... first + count - 1.
struct RowRange {
  int64_t first, count;
};

inline RowRange row_range(int64_t first_row, std::optional<int64_t> num_rows, int64_t rows) {
  const int64_t count = num_rows.value_or(rows - first_row);
  TORCH_CHECK_VALUE(first_row >= 0 && first_row <= rows, "first_row: expected 0 to ", rows, ", got ", first_row);
  TORCH_CHECK_VALUE(count >= 0 && count <= rows - first_row, "num_rows: expected 0 to ", rows - first_row, ", got ",
                    count);
  return {first_row, count};
}

// (..., R) -> (..., N), 0 for the others.
inline at::Tensor values_of_all(const at::Tensor& values, int64_t first_row, int64_t rows) {
  const int64_t count = values.size(-1);
  if (count == rows) return values;
  std::vector<int64_t> sizes = values.sizes().vec();
  sizes.back() = rows;
  const at::Tensor all = at::zeros(sizes, values.options());
  all.narrow(-1, first_row, count).copy_(values);
  return all;
}

// (R,) -> (N,), -1 for the others. Where the inputs were not finite every index is -1, and the first one says so; where
// they were, the first one is not.
inline at::Tensor index_of_all(const at::Tensor& index, int64_t first_row, int64_t rows) {
  const int64_t count = index.size(0);
  if (count == rows) return index;
  const at::Tensor all = at::full({rows}, -1, index.options());
  if (count > 0) {
    all.narrow(0, 0, 1).copy_(index.narrow(0, 0, 1).clamp_max(0));
  } else {
    all.narrow(0, 0, 1).zero_();
  }
  all.narrow(0, first_row, count).copy_(index);
  return all;
}

}  // namespace deepclust

// L2 normalization of rows and the way of a gradient back through it. No include guard: compiled once per capability.

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Sum of the squares of a row.
template <typename T>
DEEPCLUST_INLINE T squares_of(const T* row /* (depth,) */, int64_t depth) {
  return sum_terms<T>(
      depth,
      [&](int64_t k) __attribute__((always_inline)) {
        const Vec<T> x = load(row + k);
        return x * x;
      },
      [&](int64_t k) __attribute__((always_inline)) { return row[k] * row[k]; });
}

// 1 / max(norm, 1e-12) of a row; clears `finite` if the row is not.
template <typename T>
DEEPCLUST_INLINE T inverse_norm_of(const T* row /* (depth,) */, int64_t depth, bool& finite) {
  const T squares = squares_of(row, depth);
  // Squares that leave the comfortable range are summed again relative to the largest element.
  const T tiny = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
  double norm = std::sqrt(static_cast<double>(squares));
  if (!(squares > tiny && squares < T(1) / tiny)) {
    double largest = 0;
    for (int64_t k = 0; k < depth; ++k) {
      const double size = std::fabs(static_cast<double>(row[k]));
      if (!(size <= largest)) largest = size;
      finite = finite && size <= std::numeric_limits<double>::max();
    }
    double scaled = 0;
    for (int64_t k = 0; k < depth && largest > 0; ++k) scaled += (row[k] / largest) * (row[k] / largest);
    norm = largest * std::sqrt(scaled);
  }
  return static_cast<T>(1 / (norm > kMinNorm ? norm : kMinNorm));
}

// L2-normalizes `count` rows and returns whether all are finite. Without `normalize` only the check is made.
template <typename T>
bool normalize_rows(const T* rows,  // (count, depth)
                    int64_t count, int64_t depth, bool normalize,
                    T* normalized,   // (count, depth), unused without normalize
                    T* inverse_norm  // (count,) 1 / max(norm, 1e-12), or 1 without normalize
) {
  bool finite = true;
  for (int64_t r = 0; r < count; ++r, rows += depth) {
    if (!normalize) {
      finite = finite && squares_of(rows, depth) <= std::numeric_limits<T>::max();
      inverse_norm[r] = T(1);
      continue;
    }
    inverse_norm[r] = inverse_norm_of(rows, depth, finite);
    for (int64_t k = 0; k < depth; ++k) normalized[k] = rows[k] * inverse_norm[r];
    normalized += depth;
  }
  return finite;
}

// Carries a gradient through the normalization of a row: (g - n (n.g)) / |x|, or 0 below kMinNorm (NaN stays).
template <typename T>
void project_gradient(T* gradient,  // (depth,) with respect to the normalized row, overwritten
                      const T* x,   // (depth,)
                      T inverse_norm, int64_t depth) {
  if (!(inverse_norm < T(1 / kMinNorm))) {
    for (int64_t k = 0; k < depth; ++k) gradient[k] *= T(0);
    return;
  }
  const T along = sum_terms<T>(
      depth, [&](int64_t k) __attribute__((always_inline)) { return load(x + k) * inverse_norm * load(gradient + k); },
      [&](int64_t k) __attribute__((always_inline)) { return x[k] * inverse_norm * gradient[k]; });
  for (int64_t k = 0; k < depth; ++k) gradient[k] = (gradient[k] - x[k] * inverse_norm * along) * inverse_norm;
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

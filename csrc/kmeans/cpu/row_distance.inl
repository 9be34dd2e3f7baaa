// How far a row is from a center, by differences: what k-means compares and returns. After core/cpu/rows.inl. No
// include guard: compiled once per capability.

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

template <typename T>
bool all_finite(const T* row /* (depth,) */, int64_t depth) {
  return squared_distance(row, row, depth) == T(0);  // Inf - Inf and NaN - NaN are NaN
}

// |x - y| where the squares leave the range of T: relative to the largest difference.
template <typename T>
double scaled_distance(const T* x /* (depth,) */, const T* y /* (depth,) */, int64_t depth) {
  const auto difference = [&](int64_t k) { return static_cast<double>(x[k]) - static_cast<double>(y[k]); };
  double largest = 0;
  for (int64_t k = 0; k < depth; ++k) {
    const double size = std::fabs(difference(k));
    if (size > largest) largest = size;
  }
  if (!(largest > 0 && largest <= std::numeric_limits<double>::max())) return largest;
  const int exponent = std::ilogb(largest);
  double sum = 0;
  for (int64_t k = 0; k < depth; ++k) {
    const double scaled = std::ldexp(difference(k), -exponent);
    sum += scaled * scaled;
  }
  return std::ldexp(std::sqrt(sum), exponent);
}

template <typename T>
T squared_norm(const T* row /* (depth,) */, int64_t depth) {
  return sum_terms<T>(
      depth, [&](int64_t k) __attribute__((always_inline)) { return load(row + k) * load(row + k); },
      [&](int64_t k) __attribute__((always_inline)) { return row[k] * row[k]; });
}

// How near a centroid is to a row, compared and in the end turned into the distance: the cosine or the negative
// Euclidean distance. Both come from summed squared differences, for vectors shorter than 1 after normalization from
// the product.
template <typename T>
DEEPCLUST_INLINE double closeness(const T* row,       // (depth,)
                                  const T* centroid,  // (depth,)
                                  int64_t depth, bool cosine, bool is_short) {
  if (cosine && is_short) {
    return sum_terms<T>(
        depth, [&](int64_t k) __attribute__((always_inline)) { return load(row + k) * load(centroid + k); },
        [&](int64_t k) __attribute__((always_inline)) { return row[k] * centroid[k]; });
  }
  const T squared = squared_distance(row, centroid, depth);
  if (cosine) return 1 - 0.5 * squared;
  const T tiny = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
  if (squared > tiny && squared <= std::numeric_limits<T>::max()) return -std::sqrt(static_cast<double>(squared));
  return -scaled_distance(row, centroid, depth);
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

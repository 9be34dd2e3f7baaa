// Row arithmetic of the pair gradient. No include guard: compiled once per capability.
#include "common/vec.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// sum += slope * (x * x_scale - y * y_scale)
template <typename T>
void add_scaled_difference(T* sum,      // (depth,)
                           const T* x,  // (depth,)
                           T x_scale,
                           const T* y,  // (depth,)
                           T y_scale, T slope, int64_t depth) {
  int64_t k = 0;
  for (; k + VecOf<T>::kLanes <= depth; k += VecOf<T>::kLanes) {
    store(sum + k, load(sum + k) + (load(x + k) * x_scale - load(y + k) * y_scale) * slope);
  }
  for (; k < depth; ++k) sum[k] += (x[k] * x_scale - y[k] * y_scale) * slope;
}

// Carries a gradient through the normalization x / max(|x|, 1e-12): (g - n (n.g)) / |x|, or g / 1e-12 below the bound.
template <typename T>
void project_gradient(T* gradient,  // (depth,) with respect to the normalized row, overwritten
                      const T* x,   // (depth,)
                      T inverse_norm, int64_t depth) {
  T along = T(0);
  if (inverse_norm < T(1 / kMinNorm)) {
    along = sum_terms<T>(
        depth,
        [&](int64_t k) __attribute__((always_inline)) { return load(x + k) * inverse_norm * load(gradient + k); },
        [&](int64_t k) __attribute__((always_inline)) { return x[k] * inverse_norm * gradient[k]; });
  }
  for (int64_t k = 0; k < depth; ++k) gradient[k] = (gradient[k] - x[k] * inverse_norm * along) * inverse_norm;
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

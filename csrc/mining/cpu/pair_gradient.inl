// Row arithmetic of the pair gradient. No include guard: compiled once per capability.
#include "core/cpu/rows.inl"

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

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

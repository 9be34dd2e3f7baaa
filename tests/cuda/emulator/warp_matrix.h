// nvcuda::wmma for the emulated device. Included by emulator.h.
#pragma once

#include "emulator.h"

namespace deepclust::emulator {

// Matrix element that a lane's fragment holds at index i. CUDA leaves the map open, so this one is scrambled.
struct Element {
  int row;
  int column;
};
inline Element fragment_element(int lane, int i, int rows, int columns) {
  const int position = ((i * 32 + lane) * 37 + 11) & (rows * columns - 1);
  return {position / columns, position % columns};
}

// Meets the whole warp, whose lanes must pass the same pointer and leading dimension, aligned as wmma demands.
void meet_for_matrix(const char* name, const void* pointer, unsigned leading, size_t element_bytes, Location at);

// d = a * b + c for the whole warp; every lane passes its own fragments, as floats.
struct FragmentProduct {
  int m, n, k;
  bool tf32;
  const float* a;
  const float* b;
  const float* c;
  float* d;
};
void multiply_fragments(const FragmentProduct& product, Location at);

}  // namespace deepclust::emulator

namespace nvcuda::wmma {

namespace precision {
struct tf32;
}
struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

inline float __float_to_tf32(float value) {
  return deepclust::emulator::bit_cast<float>(deepclust::device::float_to_tf32(value));
}

namespace detail {
template <class Use, int m, int n, int k>
struct Shape;
template <int m, int n, int k>
struct Shape<matrix_a, m, n, k> {
  static constexpr int kRows = m, kColumns = k;
};
template <int m, int n, int k>
struct Shape<matrix_b, m, n, k> {
  static constexpr int kRows = k, kColumns = n;
};
template <int m, int n, int k>
struct Shape<accumulator, m, n, k> {
  static constexpr int kRows = m, kColumns = n;
};

template <int m, int n, int k>
constexpr bool kShape16 = k == 16 && ((m == 16 && n == 16) || (m == 32 && n == 8) || (m == 8 && n == 32));
template <int m, int n, int k>
constexpr bool kShapeTf32 = m == 16 && n == 16 && k == 8;

template <class Use, int m, int n, int k, class T>
constexpr bool kSupported = false;
template <class Use, int m, int n, int k>
constexpr bool kSupported<Use, m, n, k, __half> = kShape16<m, n, k>;
template <class Use, int m, int n, int k>
constexpr bool kSupported<Use, m, n, k, __nv_bfloat16> = kShape16<m, n, k>;
template <class Use, int m, int n, int k>
constexpr bool kSupported<Use, m, n, k, precision::tf32> = kShapeTf32<m, n, k>;
template <int m, int n, int k>
constexpr bool kSupported<accumulator, m, n, k, float> = kShape16<m, n, k> || kShapeTf32<m, n, k>;
}  // namespace detail

template <class Use, int m, int n, int k, class T, class Layout = void>
class fragment {
 public:
  static_assert(detail::kSupported<Use, m, n, k, T>, "the emulator lacks this wmma fragment");
  static_assert(std::is_same_v<Use, accumulator> == std::is_same_v<Layout, void>,
                "a and b, and only they, have a layout");
  using element_type = T;
  using storage_element_type = std::conditional_t<std::is_same_v<T, precision::tf32>, float, T>;
  static constexpr int kRows = detail::Shape<Use, m, n, k>::kRows;
  static constexpr int kColumns = detail::Shape<Use, m, n, k>::kColumns;
  static constexpr int num_elements = kRows * kColumns / 32;

  fragment() { memset(static_cast<void*>(x), 0xFF, sizeof(x)); }  // registers start with garbage: here NaN

  storage_element_type x[num_elements];
};

namespace detail {
template <class Fragment, class T>
DEEPCLUST_UNCHECKED void load(Fragment& f, const T* source, unsigned leading, bool row_major, DEEPCLUST_AT) {
  namespace emulator = deepclust::emulator;
  emulator::meet_for_matrix("load_matrix_sync", source, leading, sizeof(T), at);
  for (int i = 0; i < Fragment::num_elements; ++i) {
    const auto [row, column] = emulator::fragment_element(emulator::lane_id(), i, Fragment::kRows, Fragment::kColumns);
    const T* element = source + (row_major ? size_t(row) * leading + column : size_t(column) * leading + row);
    emulator::check_access(element, sizeof(T), emulator::Access::kRead, at);
    f.x[i] = *element;
  }
}
}  // namespace detail

template <class Use, int m, int n, int k, class T, class Layout>
void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& f,
                      const typename fragment<Use, m, n, k, T, Layout>::storage_element_type* source, unsigned leading,
                      DEEPCLUST_AT) {
  detail::load(f, source, leading, std::is_same_v<Layout, row_major>, at);
}

template <int m, int n, int k>
void load_matrix_sync(fragment<accumulator, m, n, k, float>& f, const float* source, unsigned leading, layout_t layout,
                      DEEPCLUST_AT) {
  detail::load(f, source, leading, layout == mem_row_major, at);
}

template <int m, int n, int k>
DEEPCLUST_UNCHECKED void store_matrix_sync(float* target, const fragment<accumulator, m, n, k, float>& f,
                                           unsigned leading, layout_t layout, DEEPCLUST_AT) {
  namespace emulator = deepclust::emulator;
  emulator::meet_for_matrix("store_matrix_sync", target, leading, sizeof(float), at);
  for (int i = 0; i < f.num_elements; ++i) {
    const auto [row, column] = emulator::fragment_element(emulator::lane_id(), i, m, n);
    float* element =
        target + (layout == mem_row_major ? size_t(row) * leading + column : size_t(column) * leading + row);
    emulator::check_access(element, sizeof(float), emulator::Access::kWrite, at);
    *element = f.x[i];
  }
}

template <class Fragment>
void fill_fragment(Fragment& f, typename Fragment::storage_element_type value) {
  for (auto& element : f.x) element = value;
}

template <int m, int n, int k, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, m, n, k, float>& d, const fragment<matrix_a, m, n, k, T, LayoutA>& a,
              const fragment<matrix_b, m, n, k, T, LayoutB>& b, const fragment<accumulator, m, n, k, float>& c,
              DEEPCLUST_AT) {
  float a_values[a.num_elements];
  float b_values[b.num_elements];
  for (int i = 0; i < a.num_elements; ++i) a_values[i] = static_cast<float>(a.x[i]);
  for (int i = 0; i < b.num_elements; ++i) b_values[i] = static_cast<float>(b.x[i]);
  deepclust::emulator::multiply_fragments({m, n, k, std::is_same_v<T, precision::tf32>, a_values, b_values, c.x, d.x},
                                          at);
}

}  // namespace nvcuda::wmma

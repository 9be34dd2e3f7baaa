// Steps of Sinkhorn-Knopp: a lane of the vectors is a cluster; with few, they are those of sinkhorn_by_sample.inl. No
// include guard: compiled once per capability, by sinkhorn_knopp.inl.
#include "sinkhorn/cpu/sinkhorn_by_sample.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// The largest s / epsilon + column_shift of a row, nearly.
template <typename T>
DEEPCLUST_INLINE T largest_exponent(const SinkhornScaling<T>& in, const T* scores /* (clusters,) */, int64_t clusters) {
  Vec<T> largest = broadcast(-std::numeric_limits<T>::infinity());
  for_each_column(scores, in.column_shift, clusters,
                  [&](int64_t, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                    const Vec<T> exponent = score * in.inverse_epsilon + shift;
                    largest = exponent > largest ? exponent : largest;
                  });
  return max_lanes<T>(largest);
}

// Rows [begin, end) of the kernel matrix exp(s / epsilon + column_shift + row_shift), with a row shift that makes their
// largest element at least about 1 and at most exp(kWindow); false if a score is not fit. The shift is guessed from the
// first columns, which are seldom that far from all.
template <typename T>
bool build_kernel(const SinkhornScaling<T>& problem, int64_t begin, int64_t end) {
  if (problem.clusters <= kFewClusters) return build_kernel_of_few(problem, begin, end);
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const SinkhornScaling<T> in = problem;  // which stores to the kernel matrix cannot change
  Mask<T> magnitude = {};
  for (int64_t n = begin; n < end; ++n) {
    const T* scores = in.scores + n * in.clusters;
    T* row = in.kernel + n * in.clusters;
    T largest = largest_exponent(in, scores, kFewClusters);
    bool is_guess = true;
    if (largest == -std::numeric_limits<T>::infinity()) largest = largest_exponent(in, scores, in.clusters);
    while (true) {
      if (in.is_shifted) largest = std::nearbyint(largest);
      Vec<T> excess = {};
      for_each_column(scores, in.column_shift, in.clusters,
                      [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                        const Vec<T> exponent = exponent_of<T>(in, score, shift - largest);
                        excess = exponent > excess ? exponent : excess;
                        keep_magnitude<T>(score, magnitude);
                        T edge[kLanes];
                        const bool is_edge = k + kLanes > in.clusters && n + 1 == end;  // the next row is not ours
                        store(is_edge ? edge : row + k, exponential<T>(exponent));
                        if (is_edge) std::copy(edge, edge + in.clusters - k, row + k);
                      });
      if (!is_guess || !(max_lanes<T>(excess) > kWindow)) break;
      largest = largest_exponent(in, scores, in.clusters);
      is_guess = false;
    }
    in.row_shift[n] = -largest;
  }
  return are_fit<T>(in, magnitude);
}

// Rows of the kernel matrix that are read side by side: as many as leave their sums, of two vectors each, in registers.
template <typename T>
constexpr int64_t kRowsAtOnce = Tile<T>::kPanelRows;

// Row n + r of the kernel matrix for every r, the last one before `end` in place of those beyond.
template <typename T>
DEEPCLUST_INLINE void find_rows(const SinkhornScaling<T>& in, int64_t n, int64_t end,
                                const T* (&rows)[kRowsAtOnce<T>]) {
  for (int64_t r = 0; r < kRowsAtOnce<T>; ++r) rows[r] = in.kernel + (n + r < end ? n + r : end - 1) * in.clusters;
}

// The last `count` lanes of a vector, 0 in place of the others.
template <typename T>
DEEPCLUST_INLINE Vec<T> keep_last_lanes(const Vec<T>& value, int64_t count) {
  using Integer = typename IntegerOf<T>::type;
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  static constexpr auto kKept = [] {
    std::array<Integer, 2 * kLanes> kept{};
    for (int64_t i = kLanes; i < 2 * kLanes; ++i) kept[i] = -1;
    return kept;
  }();
  return reinterpret_cast<Vec<T>>(reinterpret_cast<Mask<T>>(value) & load(kKept.data() + count));
}

// Calls use(k, vectors, row_at) for all columns, two vectors at a time as long as there are two; row_at(r, k) is a
// vector of row r of those found. Where columns end within a vector, the last one reaches back to columns that have
// been used, and is 0 there.
template <typename T, typename Use>
DEEPCLUST_INLINE void for_each_kernel_column(const T* const (&rows)[kRowsAtOnce<T>], int64_t clusters, const Use& use) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr std::integral_constant<int64_t, 1> kOne;
  constexpr std::integral_constant<int64_t, 2> kTwo;
  const auto row_at = [&](int64_t r, int64_t k) __attribute__((always_inline)) { return load(rows[r] + k); };
  int64_t k = 0;
  for (; k + 2 * kLanes <= clusters; k += 2 * kLanes) use(k, kTwo, row_at);
  if (k + kLanes <= clusters) {
    use(k, kOne, row_at);
    k += kLanes;
  }
  if (k == clusters) return;
  use(clusters - kLanes, kOne, [&](int64_t r, int64_t from) __attribute__((always_inline)) {
    return keep_last_lanes<T>(load(rows[r] + from), clusters - k);
  });
}

// sums += sum of u_r times row r.
template <typename T>
DEEPCLUST_INLINE void add_rows(const T* const (&rows)[kRowsAtOnce<T>], const T (&u)[kRowsAtOnce<T>], int64_t clusters,
                               T* sums /* (stride,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  for_each_kernel_column(rows, clusters,
                         [&](int64_t k, auto vectors, const auto& row_at) __attribute__((always_inline)) {
#pragma GCC unroll 2
                           for (int64_t i = 0; i < decltype(vectors)::value; ++i, k += kLanes) {
                             Vec<T> even = load(sums + k), odd = {};  // side by side, to hide their latency
#pragma GCC unroll 16
                             for (int64_t r = 0; r < kRowsAtOnce<T>; ++r)
                               (r % 2 == 0 ? even : odd) += row_at(r, k) * u[r];
                             store(sums + k, even + odd);
                           }
                         });
}

// The first u of rows [begin, end): 1 is exp(-row_shift) in terms of the kernel, here relative to the largest of these,
// which is returned; 0 for shares of 0. Their column sums are added up.
template <typename T>
T start_rows(const SinkhornScaling<T>& in, int64_t begin, int64_t end, T* sums /* (stride,) */) {
  if (in.clusters <= kFewClusters) return start_rows_of_few(in, begin, end, sums);
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  T largest = -std::numeric_limits<T>::infinity();
  for (int64_t n = begin; n < end; ++n) {
    if (in.shares[n] > 0 && -in.row_shift[n] > largest) largest = -in.row_shift[n];
  }
  for (int64_t n = begin; n < end; n += kLanes) {
    T exponent[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      const bool present = n + r < end && in.shares[n + r] > 0;
      exponent[r] = present ? -in.row_shift[n + r] - largest : -std::numeric_limits<T>::infinity();
    }
    store(exponent, exponential<T>(load(exponent)));
    for (int64_t r = 0; r < kLanes && n + r < end; ++r) in.u[n + r] = exponent[r];
  }
  for (int64_t n = begin; n < end; n += kRowsAtOnce<T>) {
    const T* rows[kRowsAtOnce<T>];
    find_rows(in, n, end, rows);
    T u[kRowsAtOnce<T>];
    for (int64_t r = 0; r < kRowsAtOnce<T>; ++r) u[r] = n + r < end ? in.u[n + r] : T(0);
    add_rows(rows, u, in.clusters, sums);
  }
  return largest;
}

// Scales rows [begin, end), u_n = r_n / sum_k v_k kernel_nk, adds them to the next column sums if these are not null,
// and returns the largest u.
template <typename T>
T scale_rows(const SinkhornScaling<T>& in, int64_t begin, int64_t end,
             T* row_sum,  // (N,)
             T* sums      // (stride,) or null
) {
  if (in.clusters <= kFewClusters) return scale_rows_of_few(in, begin, end, row_sum, sums);
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kRows = kRowsAtOnce<T>;
  T largest = T(0);
  for (int64_t n = begin; n < end; n += kRows) {
    const T* rows[kRows];
    find_rows(in, n, end, rows);
    double totals[kRows] = {};
    for (int64_t begin = 0; begin < in.clusters; begin += kColumnsInT) {
      const int64_t count = in.clusters - begin < kColumnsInT ? in.clusters - begin : kColumnsInT;
      const T* part[kRows];
      for (int64_t r = 0; r < kRows; ++r) part[r] = rows[r] + begin;
      Vec<T> sum[kRows][2] = {};
      for_each_kernel_column(part, count,
                             [&](int64_t k, auto vectors, const auto& row_at) __attribute__((always_inline)) {
#pragma GCC unroll 2
                               for (int64_t i = 0; i < decltype(vectors)::value; ++i) {
                                 const Vec<T> v = load(in.v + begin + k + i * kLanes);
#pragma GCC unroll 16
                                 for (int64_t r = 0; r < kRows; ++r) sum[r][i] += v * row_at(r, k + i * kLanes);
                               }
                             });
#pragma GCC unroll 16
      for (int64_t r = 0; r < kRows; ++r) totals[r] += sum_lanes<T>(sum[r][0] + sum[r][1]);
    }
    T u[kRows];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      const T total = static_cast<T>(totals[r]);
      u[r] = T(0);
      if (n + r >= end) continue;
      row_sum[n + r] = total;
      in.u[n + r] = u[r] = in.shares[n + r] / total;
      largest = u[r] > largest ? u[r] : largest;
    }
    if (sums != nullptr) add_rows(rows, u, in.clusters, sums);
  }
  return largest;
}

// Turns rows [begin, end) of the kernel matrix into assignments, N u_n v_k kernel_nk.
template <typename T>
void write_rows(const SinkhornScaling<T>& in, int64_t begin, int64_t end) {
  if (in.clusters <= kFewClusters) return write_rows_of_few(in, begin, end);
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  for (int64_t n = begin; n < end; ++n) {
    T* row = in.kernel + n * in.clusters;
    const T scale = in.u[n] * static_cast<T>(in.samples);
    int64_t k = 0;
    for (; k + kLanes <= in.clusters; k += kLanes) store(row + k, load(row + k) * load(in.v + k) * scale);
    for (; k < in.clusters; ++k) row[k] *= in.v[k] * scale;
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

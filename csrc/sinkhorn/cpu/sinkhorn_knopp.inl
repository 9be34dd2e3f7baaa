// Kernels of Sinkhorn-Knopp for one capability; driven by sinkhorn_knopp.cpp, which explains the method.
// No include guard: compiled once per capability.
#include "core/cpu/tile_core.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Columns rounded up to whole vectors.
template <typename T>
int64_t padded_columns(int64_t clusters) {
  return (clusters + VecOf<T>::kLanes - 1) / VecOf<T>::kLanes * VecOf<T>::kLanes;
}

// Calls use(k, score, shift) with vectors of a row, the last one filled up with absent columns: score 0, shift -inf.
template <typename T, typename Use>
DEEPCLUST_INLINE void for_each_column(const T* scores /* (clusters,) */, const T* shift /* (stride,) */,
                                      int64_t clusters, const Use& use) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= clusters; k += kLanes) use(k, load(scores + k), load(shift + k));
  if (k < clusters) {
    T rest[kLanes] = {};
    for (int64_t lane = 0; k + lane < clusters; ++lane) rest[lane] = scores[k + lane];
    use(k, load(rest), load(shift + k));
  }
}

// Whether the compiler joins a product and a sum into one rounding: x86 has no such instruction before AVX2, and the
// sanitizer builds are not optimized enough.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kJoinsProducts = false;
#else
constexpr bool kJoinsProducts = !(DEEPCLUST_X86 && kVectorBytes == 16);
#endif

// s / epsilon + shift. The shift comes first: it leaves little, beside which the rest of 1 / epsilon is not lost.
template <typename T>
DEEPCLUST_INLINE Vec<T> exponent_of(const SinkhornProblem<T>& in, const Vec<T>& score, const Vec<T>& shift) {
  if constexpr (!kJoinsProducts && sizeof(T) == 4) {  // far from zero the product's rounding would be all that is left
    typedef double Wide __attribute__((vector_size(2 * DEEPCLUST_VECTOR_BYTES)));
    const double inverse = static_cast<double>(in.inverse_epsilon) + static_cast<double>(in.inverse_epsilon_rest);
    return __builtin_convertvector(
        __builtin_convertvector(score, Wide) * inverse + __builtin_convertvector(shift, Wide), Vec<T>);
  } else {
    return (score * in.inverse_epsilon + shift) + score * in.inverse_epsilon_rest;
  }
}

template <typename T>
DEEPCLUST_INLINE Vec<T> exponential_of(const SinkhornProblem<T>& in, const Vec<T>& score, const Vec<T>& shift) {
  return exponential<T>(exponent_of<T>(in, score, shift));
}

// Keeps the largest absolute values of scores. As integers they have the same order, with Inf and NaN above all, and
// cost the units for multiplication nothing.
template <typename T>
DEEPCLUST_INLINE void keep_magnitude(const Vec<T>& score, Mask<T>& largest) {
  const Mask<T> magnitude = reinterpret_cast<Mask<T>>(score) & std::numeric_limits<typename IntegerOf<T>::type>::max();
  largest = magnitude > largest ? magnitude : largest;
}

// Whether s / epsilon is not too large for the largest absolute values that were kept.
template <typename T>
DEEPCLUST_INLINE bool are_fit(const SinkhornProblem<T>& in, const Mask<T>& largest) {
  const Vec<T> unfit = reinterpret_cast<Vec<T>>(largest) * in.inverse_epsilon * kOverflow<T> * T(0);  // 0 or NaN
  return sum_lanes<T>(unfit) == T(0);
}

// Lane r is combine() over the lanes of values[r].
template <typename T, typename Combine>
DEEPCLUST_INLINE Vec<T> fold_each(Vec<T> (&values)[VecOf<T>::kLanes], const Combine& combine) {
  transpose<T>(values);
#pragma GCC unroll 4
  for (int64_t half = VecOf<T>::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < half; ++i) values[i] = combine(values[i], values[i + half]);
  }
  return values[0];
}

// With few clusters, samples lie along the lanes of vectors: sums over a row need no folding then. The kernel matrix is
// a sequence of blocks (stride, kLanes) for as many samples as a vector has lanes; absent samples repeat one that is
// there, with u = 0. What stands for absent columns is never read, or written where it is overwritten.

// Room for the rows of one block where vectors would reach beyond what belongs to them.
template <typename T>
constexpr int64_t kEdgeElements = VecOf<T>::kLanes * (kFewClusters + 1);

template <typename T>
bool build_kernel_of_few(const SinkhornProblem<T>& in, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const int64_t clusters = in.clusters;
  T edge[kEdgeElements<T>];
  Mask<T> magnitude = {};
  for (int64_t n = begin; n < end; n += kLanes) {
    const T* rows = in.scores + n * clusters;
    if (n + 2 * kLanes > in.samples) {
      for (int64_t r = 0; r < kLanes; ++r) {
        const T* row = rows + (n + r < end ? r : 0) * clusters;
        std::copy(row, row + clusters, edge + r * clusters);
      }
      std::fill(edge + kLanes * clusters, edge + kLanes * (clusters + 1), T(0));
      rows = edge;
    }
    T* block = in.kernel + n * in.stride;
    Vec<T> largest = broadcast(-std::numeric_limits<T>::infinity());
    for (int64_t k = 0; k < clusters; k += kLanes) {
      Vec<T> square[kLanes];
#pragma GCC unroll 16
      for (int64_t r = 0; r < kLanes; ++r) square[r] = load(rows + r * clusters + k);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) store(block + (k + i) * kLanes, square[i]);
    }
    for (int64_t k = 0; k < clusters; ++k) {
      const Vec<T> score = load(block + k * kLanes);
      const Vec<T> exponent = score * in.inverse_epsilon + in.column_shift[k];  // near enough for a shift
      largest = exponent > largest ? exponent : largest;
      keep_magnitude<T>(score, magnitude);
    }
    store(in.row_shift + n, -largest);
    for (int64_t k = 0; k < clusters; ++k) {
      T* at = block + k * kLanes;
      store(at, exponential_of<T>(in, load(at), in.column_shift[k] - largest));
    }
  }
  return are_fit<T>(in, magnitude);
}

// Calls u_of(n) for every block of rows [begin, end) and, if `sums` is not null, adds u times the kernel matrix to it.
template <typename T, typename UOf>
DEEPCLUST_INLINE void add_rows_of_few(const SinkhornProblem<T>& in, int64_t begin, int64_t end, const UOf& u_of,
                                      T* sums /* (stride,) or null */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kBlocks = 4;  // at a time, since their sums are in memory
  Vec<T> total[kFewClusters];
  std::fill(total, total + in.stride, Vec<T>{});
  for (int64_t first = begin; first < end; first += kBlocks * kLanes) {
    Vec<T> u[kBlocks] = {};
    const T* block[kBlocks];
    for (int64_t i = 0; i < kBlocks; ++i) {
      const int64_t n = first + i * kLanes;
      if (n < end) u[i] = u_of(n);
      block[i] = in.kernel + (n < end ? n : first) * in.stride;
    }
    for (int64_t k = 0; sums != nullptr && k < in.clusters * kLanes; k += kLanes) {
      total[k / kLanes] += (load(block[0] + k) * u[0] + load(block[1] + k) * u[1]) +
                           (load(block[2] + k) * u[2] + load(block[3] + k) * u[3]);
    }
  }
  for (int64_t k = 0; sums != nullptr && k < in.stride; k += kLanes) {
    Vec<T> square[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) square[i] = total[k + i];
    store(sums + k, load(sums + k) + fold_each<T>(square, [](const Vec<T>& x, const Vec<T>& y)
                                                              __attribute__((always_inline)) { return x + y; }));
  }
}

template <typename T>
T start_rows_of_few(const SinkhornProblem<T>& in, int64_t begin, int64_t end, T* sums /* (stride,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const T infinity = std::numeric_limits<T>::infinity();
  const auto exponent = [&](int64_t n) __attribute__((always_inline)) {
    return load(in.shares + n) > T(0) ? -load(in.row_shift + n) : broadcast(-infinity);
  };
  Vec<T> peak = broadcast(-infinity);
  for (int64_t n = begin; n < end; n += kLanes) peak = exponent(n) > peak ? exponent(n) : peak;
  const T largest = max_lanes<T>(peak);
  const auto u_of = [&](int64_t n) __attribute__((always_inline)) {
    const Vec<T> u = exponential<T>(exponent(n) - (largest == -infinity ? T(0) : largest));
    store(in.u + n, u);
    return u;
  };
  add_rows_of_few(in, begin, end, u_of, sums);
  return largest;
}

template <typename T>
T scale_rows_of_few(const SinkhornProblem<T>& in, int64_t begin, int64_t end, T* row_sum, T* sums) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kParts = 4;  // sums side by side, to hide their latency
  Vec<T> largest = {};
  const auto u_of = [&](int64_t n) __attribute__((always_inline)) {
    const T* block = in.kernel + n * in.stride;
    Vec<T> part[kParts] = {};
    int64_t k = 0;
    for (; k + kParts <= in.clusters; k += kParts) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kParts; ++i) part[i] += load(block + (k + i) * kLanes) * in.v[k + i];
    }
    for (; k < in.clusters; ++k) part[0] += load(block + k * kLanes) * in.v[k];
    const Vec<T> sum = (part[0] + part[1]) + (part[2] + part[3]);
    const Vec<T> u = load(in.shares + n) / sum;
    store(row_sum + n, sum);
    store(in.u + n, u);
    largest = u > largest ? u : largest;
    return u;
  };
  add_rows_of_few(in, begin, end, u_of, sums);
  return max_lanes<T>(largest);
}

template <typename T>
void write_rows_of_few(const SinkhornProblem<T>& in, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const int64_t clusters = in.clusters;
  T edge[kEdgeElements<T>];
  for (int64_t n = begin; n < end; n += kLanes) {
    T* target = in.assignments + n * clusters;
    const bool is_edge = n + 2 * kLanes > end;
    T* rows = is_edge ? edge : target;
    const T* block = in.kernel + n * in.stride;
    const Vec<T> scale = load(in.u + n) * static_cast<T>(in.samples);
    // Where columns end within a vector, it spills into the next row, whose first columns are written later.
    for (int64_t k = (clusters - 1) / kLanes * kLanes; k >= 0; k -= kLanes) {
      Vec<T> square[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) square[i] = load(block + (k + i) * kLanes) * (in.v[k + i] * scale);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int64_t r = 0; r < kLanes; ++r) store(rows + r * clusters + k, square[r]);
    }
    if (is_edge) std::copy(edge, edge + std::min(end - n, kLanes) * clusters, target);
  }
}

// The largest s / epsilon + column_shift of a row, nearly.
template <typename T>
DEEPCLUST_INLINE T largest_exponent(const SinkhornProblem<T>& in, const T* scores /* (clusters,) */, int64_t clusters) {
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
bool build_kernel(const SinkhornProblem<T>& problem, int64_t begin, int64_t end) {
  if (problem.clusters <= kFewClusters) return build_kernel_of_few(problem, begin, end);
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const SinkhornProblem<T> in = problem;  // which stores to the kernel matrix cannot change
  Mask<T> magnitude = {};
  for (int64_t n = begin; n < end; ++n) {
    const T* scores = in.scores + n * in.clusters;
    T* row = in.kernel + n * in.clusters;
    T largest = largest_exponent(in, scores, kFewClusters);
    bool is_guess = true;
    if (largest == -std::numeric_limits<T>::infinity()) largest = largest_exponent(in, scores, in.clusters);
    while (true) {
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
DEEPCLUST_INLINE void find_rows(const SinkhornProblem<T>& in, int64_t n, int64_t end,
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
T start_rows(const SinkhornProblem<T>& in, int64_t begin, int64_t end, T* sums /* (stride,) */) {
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
T scale_rows(const SinkhornProblem<T>& in, int64_t begin, int64_t end,
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

// Whether all scores of rows [begin, end) are fit.
template <typename T>
bool is_fit(const SinkhornProblem<T>& in, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  Mask<T> magnitude = {};
  int64_t i = begin * in.clusters;
  for (; i + kLanes <= end * in.clusters; i += kLanes) keep_magnitude<T>(load(in.scores + i), magnitude);
  for (; i < end * in.clusters; ++i) keep_magnitude<T>(broadcast(in.scores[i]), magnitude);
  return are_fit<T>(in, magnitude);
}

// Turns rows [begin, end) of the kernel matrix into assignments, N u_n v_k kernel_nk.
template <typename T>
void write_rows(const SinkhornProblem<T>& in, int64_t begin, int64_t end) {
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

// For every column the largest s / epsilon + f_n over rows [begin, end).
template <typename T>
void find_largest(const SinkhornProblem<T>& in, const T* f /* (N,) */, int64_t begin, int64_t end,
                  T* largest /* (stride,) */) {
  for (int64_t n = begin; n < end; ++n) {
    for_each_column(in.scores + n * in.clusters, in.column_shift, in.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>&) __attribute__((always_inline)) {
                      const Vec<T> exponent = exponent_of<T>(in, score, broadcast(f[n]));
                      const Vec<T> before = load(largest + k);
                      store(largest + k, exponent > before ? exponent : before);
                    });
  }
}

// sums[k] += sum over rows [begin, end) of exp(s_nk / epsilon + f_n - largest_k).
template <typename T>
void add_exponentials(const SinkhornProblem<T>& in, const T* f /* (N,) */, const T* largest /* (stride,) */,
                      int64_t begin, int64_t end, T* sums /* (stride,) */) {
  for (int64_t n = begin; n < end; ++n) {
    if (f[n] == -std::numeric_limits<T>::infinity()) continue;
    for_each_column(in.scores + n * in.clusters, largest, in.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& peak) __attribute__((always_inline)) {
                      store(sums + k, load(sums + k) + exponential_of<T>(in, score, f[n] - peak));
                    });
  }
}

// The gradient by s / epsilon as far as the last u: terms = N P (grad - their mean over the row, weighted by P), rows
// [begin, end), and their sums over columns. f is log u and g log v. By the mean: the row's sum is fixed, and what is
// equal in all its elements has no effect.
template <typename T>
void start_gradient(const SinkhornGradient<T>& in, const T* grad /* (N, K) */, const T* f, const T* g, int64_t begin,
                    int64_t end, T* column_sums /* (stride,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const SinkhornProblem<T> problem = in.problem;
  for (int64_t n = begin; n < end; ++n) {
    T* terms = in.terms + n * problem.stride;
    const T* grads = grad + n * problem.clusters;
    const auto grad_at = [&](int64_t k) __attribute__((always_inline)) {
      if (k + kLanes <= problem.clusters) return load(grads + k);
      T rest[kLanes] = {};
      for (int64_t lane = 0; k + lane < problem.clusters; ++lane) rest[lane] = grads[k + lane];
      return load(rest);
    };
    Vec<T> sum = {}, weighted = {};
    for_each_column(problem.scores + n * problem.clusters, g, problem.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      const Vec<T> share = exponential_of<T>(problem, score, shift + f[n]);
                      store(terms + k, share);
                      sum += share;
                      weighted += share * grad_at(k);
                    });
    const T total = sum_lanes<T>(sum);
    const T mean = total > T(0) ? sum_lanes<T>(weighted) / total : T(0);
    for (int64_t k = 0; k < problem.stride; k += kLanes) {
      const Vec<T> term = load(terms + k) * (grad_at(k) - mean) * static_cast<T>(problem.samples);
      store(terms + k, term);
      store(column_sums + k, load(column_sums + k) + term);
    }
  }
}

// Through v_k = c_k / sum_n u_n exp(s_nk / epsilon), rows [begin, end), where f is log u and g log(v / c), and through
// the u_n = r_n / sum_k v_k exp(s_nk / epsilon) of the iteration before, where f is log(u / r) and g log v: a row of
// the one is all that the other needs of it. Only through v if column_sums is null.
template <typename T>
void gradient_through_iteration(const SinkhornGradient<T>& in, const T* f, const T* g, const T* f_before,
                                const T* g_before, int64_t begin, int64_t end, T* column_sums /* (stride,) or null */) {
  const SinkhornProblem<T> problem = in.problem;
  for (int64_t n = begin; n < end; ++n) {
    const T* scores = problem.scores + n * problem.clusters;
    T* terms = in.terms + n * problem.stride;
    Vec<T> sum = {};
    for_each_column(scores, g, problem.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      const Vec<T> part = exponential_of<T>(problem, score, shift + f[n]) * load(in.by_cluster + k);
                      store(terms + k, load(terms + k) - part);
                      sum -= part;
                    });
    if (column_sums == nullptr) continue;
    const T by_sample = sum_lanes<T>(sum);
    for_each_column(scores, g_before, problem.clusters,
                    [&](int64_t k, const Vec<T>& score, const Vec<T>& shift) __attribute__((always_inline)) {
                      const Vec<T> part = exponential_of<T>(problem, score, shift + f_before[n]) * by_sample;
                      store(terms + k, load(terms + k) - part);
                      store(column_sums + k, load(column_sums + k) - part);
                    });
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

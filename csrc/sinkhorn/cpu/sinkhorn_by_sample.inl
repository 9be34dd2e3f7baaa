// Steps of Sinkhorn-Knopp for few clusters: a lane of the vectors is a sample. No include guard: compiled once per
// capability, by sinkhorn_knopp.inl.
namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// With few clusters, samples lie along the lanes of vectors: sums over a row need no folding then. The kernel matrix is
// a sequence of blocks (clusters, kLanes) for as many samples as a vector has lanes. Such a block is as large as the
// assignments of its samples, so that it can lie in their place. Where the last block has fewer, it lies apart: absent
// samples repeat one that is there, with u = 0.

// Room for the rows of one block where vectors would reach beyond what belongs to them.
template <typename T>
constexpr int64_t kEdgeElements = VecOf<T>::kLanes * (kFewClusters + 1);

// The block of samples [n, n + kLanes).
template <typename T>
DEEPCLUST_INLINE T* block_at(const SinkhornScaling<T>& in, int64_t n) {
  return n + VecOf<T>::kLanes <= in.samples ? in.kernel + n * in.clusters : in.last_block;
}

// Turns the rows of one block of scores, and what follows them up to a vector, into columns. What stands for absent
// ones is never used.
template <typename T>
DEEPCLUST_INLINE void transpose_rows(const T* rows, int64_t clusters, Vec<T> (&columns)[kFewClusters]) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  for (int64_t k = 0; k < clusters; k += kLanes) {
    Vec<T> square[kLanes];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kLanes; ++r) square[r] = load(rows + r * clusters + k);
    transpose<T>(square);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) columns[k + i] = square[i];
  }
}

template <typename T>
bool build_kernel_of_few(const SinkhornScaling<T>& problem, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kParts = 4;           // comparisons side by side, to hide their latency
  const SinkhornScaling<T> in = problem;  // which stores to the kernel matrix cannot change
  const int64_t clusters = in.clusters, size = in.samples * clusters;
  T edge[kEdgeElements<T>];
  Mask<T> magnitude[kParts] = {};
  for (int64_t n = begin; n < end; n += kLanes) {
    const T* rows = in.scores + n * clusters;
    // The last row's vectors would end beyond the scores: rows that are there, and room for those vectors.
    if ((n + kLanes - 1) * clusters + in.stride > size) {
      const int64_t present = end - n < kLanes ? end - n : kLanes;
      std::copy(rows, rows + present * clusters, edge);
      for (int64_t r = present; r < kLanes; ++r) std::copy(rows, rows + clusters, edge + r * clusters);
      std::fill(edge + kLanes * clusters, edge + kLanes * (clusters + 1), T(0));
      rows = edge;
    }
    Vec<T> scores[kFewClusters];
    transpose_rows<T>(rows, clusters, scores);

    // The largest exponent of every sample, near enough for a shift.
    Vec<T> part[kParts];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kParts; ++i) part[i] = broadcast(-std::numeric_limits<T>::infinity());
    const auto compare = [&](int64_t k, int64_t i) __attribute__((always_inline)) {
      const Vec<T> exponent = scores[k] * in.inverse_epsilon + in.column_shift[k];
      part[i] = exponent > part[i] ? exponent : part[i];
      keep_magnitude<T>(scores[k], magnitude[i]);
    };
    int64_t k = 0;
    for (; k + kParts <= clusters; k += kParts) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kParts; ++i) compare(k + i, i);
    }
    for (; k < clusters; ++k) compare(k, 0);
#pragma GCC unroll 2
    for (int64_t half = kParts / 2; half > 0; half /= 2) {
#pragma GCC unroll 2
      for (int64_t i = 0; i < half; ++i) part[i] = part[i] > part[i + half] ? part[i] : part[i + half];
    }
    const Vec<T> largest =
        in.is_shifted ? (part[0] + Exponential<T>::kRound) - Exponential<T>::kRound : part[0];  // to a whole number
    store(in.row_shift + n, -largest);

    T* block = block_at(in, n);
    for (k = 0; k < clusters; ++k) {
      store(block + k * kLanes, exponential_of<T>(in, scores[k], in.column_shift[k] - largest));
    }
  }
#pragma GCC unroll 4
  for (int64_t i = 1; i < kParts; ++i) magnitude[0] = magnitude[i] > magnitude[0] ? magnitude[i] : magnitude[0];
  return are_fit<T>(in, magnitude[0]);
}

// Calls u_of(n, block) for every block of rows [begin, end) and, if `sums` is not null, adds u times the kernel matrix
// to it.
template <typename T, typename UOf>
DEEPCLUST_INLINE void add_rows_of_few(const SinkhornScaling<T>& in, int64_t begin, int64_t end, const UOf& u_of,
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
      block[i] = block_at(in, n < end ? n : first);
      if (n < end) u[i] = u_of(n, block[i]);
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
T start_rows_of_few(const SinkhornScaling<T>& in, int64_t begin, int64_t end, T* sums /* (stride,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const T infinity = std::numeric_limits<T>::infinity();
  const auto exponent = [&](int64_t n) __attribute__((always_inline)) {
    return load(in.shares + n) > T(0) ? -load(in.row_shift + n) : broadcast(-infinity);
  };
  Vec<T> peak = broadcast(-infinity);
  for (int64_t n = begin; n < end; n += kLanes) peak = exponent(n) > peak ? exponent(n) : peak;
  const T largest = max_lanes<T>(peak);
  const auto u_of = [&](int64_t n, const T*) __attribute__((always_inline)) {
    const Vec<T> u = exponential<T>(exponent(n) - (largest == -infinity ? T(0) : largest));
    store(in.u + n, u);
    return u;
  };
  add_rows_of_few(in, begin, end, u_of, sums);
  return largest;
}

template <typename T>
T scale_rows_of_few(const SinkhornScaling<T>& in, int64_t begin, int64_t end, T* row_sum, T* sums) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  constexpr int64_t kParts = 4;  // sums side by side, to hide their latency
  Vec<T> largest = {};
  const auto u_of = [&](int64_t n, const T* block) __attribute__((always_inline)) {
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

// The first `count` lanes of a vector.
template <typename T>
DEEPCLUST_INLINE void store_first(T* to, const Vec<T>& value, int64_t count) {
  if (count >= VecOf<T>::kLanes) {
    store(to, value);
  } else {
    T lanes[VecOf<T>::kLanes];
    store(lanes, value);
    std::copy(lanes, lanes + count, to);
  }
}

template <typename T>
void write_rows_of_few(const SinkhornScaling<T>& problem, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  const SinkhornScaling<T> in = problem;  // which stores to the assignments cannot change
  const int64_t clusters = in.clusters;
  T edge[kEdgeElements<T>];
  for (int64_t n = begin; n < end; n += kLanes) {
    const T* block = block_at(in, n);
    const Vec<T> scale = load(in.u + n) * static_cast<T>(in.samples);
    const auto column_at = [&](int64_t k)
                               __attribute__((always_inline)) { return load(block + k * kLanes) * (in.v[k] * scale); };
    // Where rows take the block's place, all of it is read before. A single square is in registers then.
    Vec<T> columns[kFewClusters];
    const bool is_read_before = in.kernel == in.assignments && clusters > kLanes;
    for (int64_t k = 0; is_read_before && k < clusters; ++k) columns[k] = column_at(k);

    // Where columns end within a vector, it spills into the next row, whose first columns are written later. The last
    // row must not, since the next block comes then; with still fewer columns others would reach that.
    T* target = in.assignments + n * clusters;
    T* rows = n + kLanes <= end && 2 * clusters >= kLanes ? target : edge;
    for (int64_t k = (clusters - 1) / kLanes * kLanes; k >= 0; k -= kLanes) {
      Vec<T> square[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        square[i] = k + i >= clusters ? Vec<T>{} : is_read_before ? columns[k + i] : column_at(k + i);
      }
      transpose<T>(square);
#pragma GCC unroll 16
      for (int64_t r = 0; r + 1 < kLanes; ++r) store(rows + r * clusters + k, square[r]);
      store_first(rows + (kLanes - 1) * clusters + k, square[kLanes - 1], clusters - k);
    }
    if (rows == edge) std::copy(edge, edge + std::min(end - n, kLanes) * clusters, target);
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

// Steps of Sinkhorn-Knopp for few clusters: a lane of the vectors is a sample. No include guard: compiled once per
// capability, by sinkhorn_knopp.inl.
namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// With few clusters, samples lie along the lanes of vectors: sums over a row need no folding then. The kernel matrix is
// a sequence of blocks (stride, kLanes) for as many samples as a vector has lanes; absent samples repeat one that is
// there, with u = 0. What stands for absent columns is never read, or written where it is overwritten.

// Room for the rows of one block where vectors would reach beyond what belongs to them.
template <typename T>
constexpr int64_t kEdgeElements = VecOf<T>::kLanes * (kFewClusters + 1);

template <typename T>
bool build_kernel_of_few(const SinkhornScaling<T>& in, int64_t begin, int64_t end) {
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
T start_rows_of_few(const SinkhornScaling<T>& in, int64_t begin, int64_t end, T* sums /* (stride,) */) {
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
T scale_rows_of_few(const SinkhornScaling<T>& in, int64_t begin, int64_t end, T* row_sum, T* sums) {
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
void write_rows_of_few(const SinkhornScaling<T>& in, int64_t begin, int64_t end) {
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

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

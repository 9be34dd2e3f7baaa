// Sums and sizes of clusters by parts of the rows. No include guard: compiled once per capability, by
// kmeans_assign.inl.
namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

template <typename T>
DEEPCLUST_INLINE void add_row(const T* row /* (depth,) */, int64_t depth, T* sum /* (depth,) */) {
  constexpr int64_t kLanes = VecOf<T>::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) store(sum + k, load(sum + k) + load(row + k));
  for (; k < depth; ++k) sum[k] += row[k];
}

// Moves what was added up of one cluster to its wide sums, which are nothing before the first time, and starts anew.
template <typename T>
void widen_sums(T* sums /* (depth,) */, int64_t depth, bool is_first, double* wide /* (depth,) */) {
  for (int64_t k = 0; k < depth; ++k) {
    wide[k] = (is_first ? 0.0 : wide[k]) + sums[k];
    sums[k] = T(0);
  }
}

// Sums and sizes of the clusters of rows [begin, end), in order. However many rows there are, a sum in T has no more
// than kRowsInT terms.
template <typename T>
void sum_part(const T* features,      // (N, depth)
              const int64_t* labels,  // (N,)
              int64_t begin, int64_t end, int64_t depth, int64_t clusters,
              double* wide,    // (clusters, depth) to work with; unused if T is double
              T* sums,         // (clusters, depth)
              int64_t* counts  // (clusters,)
) {
  constexpr bool kWidens = !std::is_same_v<T, double>;
  std::fill(sums, sums + clusters * depth, T(0));
  std::fill(counts, counts + clusters, int64_t{0});
  for (int64_t i = begin; i < end; ++i) {
    const int64_t label = labels[i];
    if (label < 0 || label >= clusters) continue;
    T* sum = sums + label * depth;
    add_row(features + i * depth, depth, sum);
    if (++counts[label] % kRowsInT == 0 && kWidens) {
      widen_sums(sum, depth, counts[label] == kRowsInT, wide + label * depth);
    }
  }
  for (int64_t c = 0; kWidens && c < clusters; ++c) {
    if (counts[c] < kRowsInT) continue;
    for (int64_t e = c * depth; e < (c + 1) * depth; ++e) sums[e] = static_cast<T>(wide[e] + sums[e]);
  }
}

// Adds the parts of the sums of one cluster, in order.
template <typename T>
void add_parts(const T* parts,  // (count, ...) of leading dimension `stride`
               int64_t count, int64_t stride, int64_t depth,
               double* wide,  // (depth,) to work with
               T* sum         // (depth,)
) {
  std::fill(wide, wide + depth, 0.0);
  for (int64_t part = 0; part < count; ++part) {
    for (int64_t k = 0; k < depth; ++k) wide[k] += parts[part * stride + k];
  }
  for (int64_t k = 0; k < depth; ++k) sum[k] = static_cast<T>(wide[k]);
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

// Kernels of pair_information for one capability; driven by pair_information.cpp, which explains the method.
// No include guard: compiled once per capability.
#include "core/cpu/tile_core.inl"

namespace deepclust {
namespace DEEPCLUST_CAPABILITY {

// Packs the columns of a last layer from `first` on; absent ones are copies of the last.
template <typename T>
void pack_weight(const T* weight,  // (clusters, depth)
                 const T* zeros,   // (depth,)
                 int64_t first, int64_t clusters, int64_t depth,
                 T* panel  // (depth, kPanelColumns)
) {
  T squares[Tile<T>::kPanelColumns];  // not needed
  pack_columns(weight, depth, zeros, first, clusters, depth, panel, squares);
}

// Copies the first and then the second rows of some pairs, times `scale`, and fills up the last panel with zero rows.
template <typename T>
void pack_pairs(const T* rows,  // (2 all, depth)
                int64_t all, int64_t first, int64_t pairs, int64_t depth, T scale,
                T* block  // (2 pairs rounded up to kPanelRows, block_stride(depth))
) {
  const int64_t stride = block_stride(depth);
  for (int64_t r = 0; r < round_up(2 * pairs, Tile<T>::kPanelRows); ++r) {
    const bool is_row = r < 2 * pairs;
    const T* row = rows + (first + (r < pairs ? r : all - pairs + r)) * depth;
    for (int64_t k = 0; k < depth; ++k) block[r * stride + k] = is_row ? row[k] * scale : T(0);
    for (int64_t k = depth; k < stride; ++k) block[r * stride + k] = T(0);
  }
}

// The logits of packed rows; those of absent clusters are those of the last.
template <typename T>
void pair_logits(const PairShape<T>& shape, const T* block, const T* panels, int64_t rows,
                 T* logits  // (rows rounded up to kPanelRows, score_stride)
) {
  const int64_t end = round_up(shape.clusters, Tile<T>::kPanelColumns);
  score_columns(block, panels, shape.zeros, rows, 0, end, shape.depth, logits, shape.score_stride);
}

// Vectors of a step over the clusters of a row: as many bytes on every instruction set, so that sums have one order.
constexpr int64_t kStepVectors = kClusterBytes / kVectorBytes;

// The largest of a row's values.
template <typename T, typename Value>
DEEPCLUST_INLINE T largest_over_clusters(int64_t padded, const Value& value) {
  constexpr int64_t kVectors = kStepVectors, kLanes = VecOf<T>::kLanes;
  Vec<T> most[kVectors];
#pragma GCC unroll 16
  for (int64_t v = 0; v < kVectors; ++v) most[v] = broadcast(-std::numeric_limits<T>::infinity());
  for (int64_t k = 0; k < padded; k += kVectors * kLanes) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vec<T> next = value(k + v * kLanes);
      most[v] = most[v] > next ? most[v] : next;
    }
  }
#pragma GCC unroll 16
  for (int64_t v = 1; v < kVectors; ++v) most[0] = most[0] > most[v] ? most[0] : most[v];
  return max_lanes<T>(most[0]);
}

// The sum of a row's terms.
template <typename T, typename Term>
DEEPCLUST_INLINE T sum_over_clusters(int64_t padded, const Term& term) {
  constexpr int64_t kVectors = kStepVectors, kLanes = VecOf<T>::kLanes;
  Vec<T> partial[kVectors];
#pragma GCC unroll 16
  for (int64_t v = 0; v < kVectors; ++v) partial[v] = Vec<T>{};
  for (int64_t k = 0; k < padded; k += kVectors * kLanes) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < kVectors; ++v) partial[v] += term(k + v * kLanes);
  }
  add_halves<kVectors / 2, T>(partial);
  return sum_lanes<T>(partial[0]);
}

// The largest logit of a row, NaN if one is not finite. Takes absent clusters out.
template <typename T>
DEEPCLUST_INLINE T largest_logit(const PairShape<T>& shape, T* logits /* (padded,) */) {
  std::fill(logits + shape.clusters, logits + shape.padded, logits[0]);
  const T zero = sum_over_clusters<T>(
      shape.padded, [&](int64_t k) __attribute__((always_inline)) { return load(logits + k) * T(0); });
  const T largest = largest_over_clusters<T>(
      shape.padded, [&](int64_t k) __attribute__((always_inline)) { return load(logits + k); });
  std::fill(logits + shape.clusters, logits + shape.padded, -std::numeric_limits<T>::infinity());
  return largest + zero;  // 0 times what is not finite is NaN
}

// Replaces values by their exponentials relative to the largest, and returns their sum.
template <typename T>
DEEPCLUST_INLINE T take_exponentials(int64_t padded, T largest, T* values /* (padded,) */) {
  return sum_over_clusters<T>(padded, [&](int64_t k) __attribute__((always_inline)) {
    const Vec<T> value = exponential<T>(load(values + k) - largest);
    store(values + k, value);
    return value;
  });
}

// Turns the logits of a student's row into the gradient of the information by them, with the teacher's logits of the
// other row, which are overwritten. Returns the row's part of the information, NaN if a logit is not finite.
template <typename T>
DEEPCLUST_INLINE double row_gradient(const PairShape<T>& shape, T beta, double pair_weight, T* student, T* teacher) {
  const int64_t padded = shape.padded;
  const T student_largest = largest_logit(shape, student), teacher_largest = largest_logit(shape, teacher);
  if (!std::isfinite(student_largest) || !std::isfinite(teacher_largest)) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  const T teacher_sum = sum_over_clusters<T>(padded, [&](int64_t k) __attribute__((always_inline)) {
    return exponential<T>(load(teacher + k) - teacher_largest);
  });
  // j = beta (s + t - lse(t)) - log distribution; what is the same for all clusters waits until the logarithm. Each
  // logit is taken relative to its own largest before they are added: one head may be surer by far than the other.
  const T joint_largest = largest_over_clusters<T>(padded, [&](int64_t k) __attribute__((always_inline)) {
    const Vec<T> agreed = (load(student + k) - student_largest) + (load(teacher + k) - teacher_largest);
    const Vec<T> joint = beta * agreed - load(shape.log_distribution + k);
    store(teacher + k, joint);
    return joint;
  });
  const T joint_sum = take_exponentials(padded, joint_largest, teacher);
  const T student_sum = take_exponentials(padded, student_largest, student);
  const T scale = static_cast<T>(pair_weight) * beta / static_cast<T>(2 * shape.pairs);
  const T of_joint = T(1) / joint_sum, of_student = T(1) / student_sum;
  for (int64_t k = 0; k < padded; k += VecOf<T>::kLanes) {
    store(student + k, scale * (load(teacher + k) * of_joint - load(student + k) * of_student));
  }
  const double sums = std::log(static_cast<double>(teacher_sum)) + std::log(static_cast<double>(student_sum));
  return pair_weight * (joint_largest + std::log(static_cast<double>(joint_sum)) - beta * sums);
}

// Turns the logits of both rows of some pairs into gradients, and returns their part of the information.
template <typename T>
double pair_gradients(const PairShape<T>& shape, T beta, const T* pair_weights /* (pairs,) */, int64_t pairs,
                      T* students,  // (2 pairs, score_stride)
                      T* teachers   // (2 pairs, score_stride)
) {
  double information = 0;
  for (int64_t r = 0; r < 2 * pairs; ++r) {
    const int64_t pair = r % pairs, other = r < pairs ? r + pairs : r - pairs;
    information += row_gradient(shape, beta, static_cast<double>(pair_weights[pair]), students + r * shape.score_stride,
                                teachers + other * shape.score_stride);
  }
  return information;
}

// Turns logits of both rows of some pairs into shares, and adds these up. Returns the sum of the largest shares, NaN if
// a logit is not finite.
template <typename T>
double pair_shares(const PairShape<T>& shape, int64_t pairs,
                   T* logits,    // (2 pairs, score_stride)
                   T* sums,      // (padded,)
                   T* agreement  // (pairs,)
) {
  double all_largest = 0;
  std::fill(sums, sums + shape.padded, T(0));
  for (int64_t r = 0; r < 2 * pairs; ++r) {
    T* row = logits + r * shape.score_stride;
    const T largest = largest_logit(shape, row);
    if (!std::isfinite(largest)) return std::numeric_limits<double>::quiet_NaN();
    const T inverse_sum = T(1) / take_exponentials(shape.padded, largest, row);
    all_largest += static_cast<double>(inverse_sum);  // exp(0) over the sum
    for (int64_t k = 0; k < shape.padded; k += VecOf<T>::kLanes) {
      const Vec<T> share = load(row + k) * inverse_sum;
      store(row + k, share);
      store(sums + k, load(sums + k) + share);
    }
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const T *first = logits + pair * shape.score_stride, *second = first + pairs * shape.score_stride;
    agreement[pair] = sum_over_clusters<T>(
        shape.padded, [&](int64_t k) __attribute__((always_inline)) { return load(first + k) * load(second + k); });
  }
  return all_largest;
}

// Gradients by some rows, from those by their logits.
template <typename T>
void rows_from_logits(const PairShape<T>& shape,
                      const T* by_logits,      // (rows, score_stride)
                      const T* padded_weight,  // (clusters, width)
                      int64_t rows, int64_t width,
                      T* gradient  // (rows, width)
) {
  std::fill(gradient, gradient + rows * width, T(0));
  for (int64_t first = 0; first < shape.clusters; first += kChain) {
    add_product<false>(by_logits + first, shape.score_stride, padded_weight + first * width, width, rows,
                       std::min(kChain, shape.clusters - first), width, gradient, width);
  }
}

// Adds to the gradients by some columns of a last layer.
template <typename T>
void add_weight_gradient(const PairShape<T>& shape,
                         const T* by_logits,  // (rows, score_stride), from the first of the columns on
                         const T* block,      // (rows, block_stride(depth))
                         int64_t rows, int64_t columns, int64_t width,
                         T* gradient  // (columns, width)
) {
  const int64_t stride = block_stride(shape.depth);
  for (int64_t first = 0; first < rows; first += kChain) {
    add_product<true>(by_logits + first * shape.score_stride, shape.score_stride, block + first * stride, stride,
                      columns, std::min(kChain, rows - first), width, gradient, width);
  }
}

}  // namespace DEEPCLUST_CAPABILITY
}  // namespace deepclust

// Sinkhorn-Knopp by scaling a kernel matrix, exactly equal to its logarithmic form.
//
// The kernel matrix exp(s_nk / epsilon + column_shift_k + row_shift_n) is computed once, with the row shifts that make
// the largest element of every row about 1; an iteration then reads it once: a row's sum gives its u, and while the row
// is in cache its share of the next column sums is added up. What the shifts take out, u and v put back, so the
// iterates are the same. Elements that vanish in such a matrix matter only to columns of which all elements nearly
// vanish, and after v has come to span many orders of magnitude. Both are seen in the column sums; then that step is
// done with logarithmic sums and the matrix is computed anew around the current v. However large logarithms are, what
// the matrix is shifted by are whole numbers, and the rest stays in u and v.
//
// Scores too large for such exponents, as masks are, are first moved by what v and u take up, column by column and row
// by row.
//
// The gradient goes back through the iterations from the potentials log u and log v of each: the derivative of every
// step is a softmax that they determine.
//
// What a call does forward stands in sinkhorn_forward.h, and what it does backward in sinkhorn_backward.h.
//
// Cost: an exponential for every element, and two multiply-adds for each iteration; the gradient takes two exponentials
// for each iteration. The matrix lies where the assignments are to be, if it is not small; the gradient needs memory
// for one more.
#include "sinkhorn/sinkhorn_knopp.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "core/cpu/scratch.h"
#include "core/dtypes.h"

namespace deepclust {
namespace {

// Up to so many clusters samples lie along the lanes of vectors. The column sums, a vector for each cluster, are at
// most 4 KB on the stack then, and with more clusters at most a fifth of a row's lanes is absent.
constexpr int64_t kFewClusters = 64;
// Elements of a matrix that lies apart from the assignments where clusters are few: memory that is in the first cache
// from one problem to the next is read faster.
constexpr int64_t kSmallMatrix = 1 << 13;
// Of the vectors of any capability.
constexpr int64_t kMostLanes = 16;
// Elements of a row that are added up before the sum goes on in double: at most 128 of float32 in a lane, so that the
// error does not grow with K, and so many that to fold the lanes costs little beside.
constexpr int64_t kColumnsInT = 1024;
// The logarithm of what an element of the kernel matrix may be above 1. That much less than kVanishing of a column sum
// may be lost: exp(-87) is where exponentials vanish.
constexpr int kWindow = 20;
// What makes s / epsilon overflow from twice kLargestLogit on: 2^128 and 2^1024 are the first powers that no type has.
template <typename T>
constexpr T kOverflow = sizeof(T) == 4 ? 0x1p107 : 0x1p1003;

// What both directions read of a problem; T is the accumulation type. Columns from `clusters` to `stride` are absent.
template <typename T>
struct SinkhornProblem {
  int64_t samples, clusters, stride;
  const T* scores;                          // (N, K)
  T inverse_epsilon, inverse_epsilon_rest;  // whose sum is 1 / epsilon
};

// Forward: the kernel matrix, 0 in absent columns, and its scales.
template <typename T>
struct SinkhornScaling : SinkhornProblem<T> {
  const T* shares;  // (N,) of the samples
  T* kernel;        // (N, K) in place of the assignments unless small; with few clusters in blocks
  T* last_block;    // with few clusters, if it has fewer samples than the others
  T* row_shift;     // (N,)
  T* column_shift;  // (stride,) -inf where absent or of share 0
  T* u;             // (N,)
  T* v;             // (stride,)
  T* assignments;   // (N, K)
  bool is_shifted;  // whether column shifts are not all 0; they are whole numbers, and row shifts are then too
};

// Backward: log u or log v. Those too large for T are whole numbers and what is left beside them.
template <typename T>
struct SinkhornPotential {
  const T* value;  // (N,) or (stride,)
  const T* rest;   // likewise, or null where it is 0
};

// Backward: the gradient on its way back.
template <typename T>
struct SinkhornGradient {
  SinkhornProblem<T> problem;
  T* terms;       // (N, stride) the gradient by s / epsilon
  T* by_cluster;  // (stride,) by log v of the iteration at hand
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "sinkhorn/cpu/sinkhorn_knopp.inl"
#include "core/cpu/foreach_capability.h"

#include "sinkhorn/cpu/sinkhorn_backward.h"
#include "sinkhorn/cpu/sinkhorn_forward.h"

namespace deepclust {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Calls solve(solver, problem) for every problem, by a Solver or a GradientSolver: threads share the problems if these
// are small, else every problem.
template <typename Direction, typename Solve>
void for_each_problem(int64_t problems, int64_t samples, int64_t clusters, double epsilon, const Solve& solve) {
  const bool is_large = samples * clusters > kParallelElements && problems < 2 * at::get_num_threads();
  const auto run = [&](int64_t begin, int64_t end) {
    Direction solver(samples, clusters, epsilon);
    for (int64_t problem = begin; problem < end; ++problem) solve(solver, problem);
  };
  if (is_large) {
    run(0, problems);
  } else {
    at::parallel_for(0, problems, std::max<int64_t>(1, kParallelElements / (samples * clusters)), run);
  }
}

// Shares in the accumulation type, and from one problem's to the next's.
template <typename T>
struct Shares {
  at::Tensor tensor;
  const T* values = nullptr;
  int64_t step = 0;

  Shares(const OptionalTensor& shares, at::ScalarType dtype) {
    if (!shares) return;
    tensor = to_shares(*shares, dtype);
    values = tensor.template const_data_ptr<T>();
    step = shares->dim() > 1 ? shares->size(-1) : 0;
  }
  const T* of(int64_t problem) const { return values == nullptr ? nullptr : values + problem * step; }
};

// at::empty without the dispatcher, which small calls would feel.
at::Tensor new_tensor(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::Tensor(at::detail::empty_cpu(sizes, dtype));
}

// Solves all problems; all tensors but the shares are of the accumulation type and contiguous.
template <typename T>
void solve_problems(const at::Tensor& scores,  // (..., N, K)
                    double epsilon, int64_t num_iters, const OptionalTensor& sample_marginals,
                    const OptionalTensor& cluster_marginals, std::optional<double> tolerance,
                    const at::Tensor& assignments,  // (..., N, K)
                    const at::Tensor& used,         // (...) int64
                    const at::Tensor& potentials    // (..., num_iters, 2, N + K), or empty if none are wanted
) {
  const int64_t samples = scores.size(-2), clusters = scores.size(-1);
  const Shares<T> r(sample_marginals, scores.scalar_type()), c(cluster_marginals, scores.scalar_type());
  const T* values = scores.const_data_ptr<T>();
  T* target = assignments.mutable_data_ptr<T>();
  T* keep = potentials.numel() > 0 ? potentials.mutable_data_ptr<T>() : nullptr;
  int64_t* count = used.mutable_data_ptr<int64_t>();
  for_each_problem<Solver<T>>(used.numel(), samples, clusters, epsilon, [&](Solver<T>& solver, int64_t i) {
    const int64_t offset = i * samples * clusters;
    count[i] = solver.solve(values + offset, r.of(i), c.of(i), num_iters, tolerance, target + offset,
                            keep == nullptr ? nullptr : keep + i * num_iters * 2 * (samples + clusters));
  });
}

// Writes all outputs; those of no elements too.
void write_outputs(const at::Tensor& scores, double epsilon, int64_t num_iters, const OptionalTensor& sample_marginals,
                   const OptionalTensor& cluster_marginals, std::optional<double> tolerance,
                   const at::Tensor& assignments, const at::Tensor& used, const at::Tensor& potentials) {
  if (scores.numel() == 0) {
    used.fill_(num_iters);
    potentials.zero_();
    return;
  }
  const auto solve = scores.scalar_type() == at::kDouble ? solve_problems<double> : solve_problems<float>;
  solve(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, assignments, used, potentials);
}

SinkhornKnoppOutputs sinkhorn_knopp_cpu(const at::Tensor& scores,  // (..., N, K)
                                        double epsilon, int64_t num_iters,
                                        const OptionalTensor& sample_marginals,   // (N,) or (..., N)
                                        const OptionalTensor& cluster_marginals,  // (K,) or (..., K)
                                        std::optional<double> tolerance, bool differentiable) {
  check_sinkhorn_knopp(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance);
  const at::Tensor wide = to_accumulation(scores);
  const auto batch = scores.sizes().slice(0, scores.dim() - 2);
  std::vector<int64_t> kept(batch.begin(), batch.end());
  kept.insert(kept.end(), {num_iters, 2, scores.size(-2) + scores.size(-1)});
  if (!differentiable) kept = {0};
  const at::Tensor assignments = new_tensor(scores.sizes(), wide.scalar_type());
  const at::Tensor used = new_tensor(batch, at::kLong);
  const at::Tensor potentials = new_tensor(kept, wide.scalar_type());
  write_outputs(wide, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, assignments, used,
                potentials);
  return {to_dtype(assignments, scores.scalar_type()), used, potentials};
}

at::Tensor sinkhorn_knopp_out_cpu(const at::Tensor& scores,  // (..., N, K)
                                  double epsilon, int64_t num_iters,
                                  const OptionalTensor& sample_marginals,   // (N,) or (..., N)
                                  const OptionalTensor& cluster_marginals,  // (K,) or (..., K)
                                  std::optional<double> tolerance,
                                  const at::Tensor& out  // (..., N, K)
) {
  check_sinkhorn_knopp(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance);
  check_sinkhorn_knopp_out(scores, sample_marginals, cluster_marginals, out);
  const at::Tensor wide = to_accumulation(scores);
  const bool is_wide = out.scalar_type() == wide.scalar_type();
  const at::Tensor assignments = is_wide ? out : new_tensor(scores.sizes(), wide.scalar_type());
  const at::Tensor used = new_tensor(scores.sizes().slice(0, scores.dim() - 2), at::kLong);
  const at::Tensor none = new_tensor({0}, wide.scalar_type());
  write_outputs(wide, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, assignments, used, none);
  if (!is_wide) out.copy_(assignments);
  return used;
}

template <typename T>
at::Tensor gradient_of(const at::Tensor& grad_assignments, const at::Tensor& scores_input, const at::Tensor& used,
                       const at::Tensor& potentials, double epsilon, const OptionalTensor& sample_marginals,
                       const OptionalTensor& cluster_marginals) {
  const at::Tensor scores = to_accumulation(scores_input), grad = to_accumulation(grad_assignments);
  const at::Tensor grad_scores = new_tensor(scores.sizes(), scores.scalar_type());
  if (scores.numel() == 0) return to_dtype(grad_scores, scores_input.scalar_type());
  const int64_t samples = scores.size(-2), clusters = scores.size(-1), num_iters = potentials.size(-3);
  const Shares<T> r(sample_marginals, scores.scalar_type()), c(cluster_marginals, scores.scalar_type());
  const at::Tensor counts = used.contiguous(), kept = potentials.contiguous();
  using Direction = GradientSolver<T>;
  for_each_problem<Direction>(counts.numel(), samples, clusters, epsilon, [&](Direction& solver, int64_t i) {
    const int64_t offset = i * samples * clusters;
    solver.gradient(scores.const_data_ptr<T>() + offset, grad.const_data_ptr<T>() + offset, r.of(i), c.of(i),
                    counts.const_data_ptr<int64_t>()[i],
                    kept.const_data_ptr<T>() + i * num_iters * 2 * (samples + clusters),
                    grad_scores.mutable_data_ptr<T>() + offset);
  });
  return to_dtype(grad_scores, scores_input.scalar_type());
}

at::Tensor sinkhorn_knopp_backward_cpu(const at::Tensor& grad_assignments,      // (..., N, K)
                                       const at::Tensor& scores,                // (..., N, K)
                                       const at::Tensor& used,                  // (...) int64
                                       const at::Tensor& potentials,            // (..., num_iters, 2, N + K)
                                       double epsilon,                          //
                                       const OptionalTensor& sample_marginals,  // (N,) or (..., N)
                                       const OptionalTensor& cluster_marginals  // (K,) or (..., K)
) {
  const auto run = scores.scalar_type() == at::kDouble ? gradient_of<double> : gradient_of<float>;
  return run(grad_assignments, scores, used, potentials, epsilon, sample_marginals, cluster_marginals);
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) {
  m.impl("sinkhorn_knopp", sinkhorn_knopp_cpu);
  m.impl("sinkhorn_knopp.out", sinkhorn_knopp_out_cpu);
  m.impl("sinkhorn_knopp_backward", sinkhorn_knopp_backward_cpu);
}

}  // namespace deepclust

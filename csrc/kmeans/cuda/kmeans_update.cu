// Sums and sizes of clusters without atomics.
//
// A warp adds some rows' values in 32 columns to the sums of up to kChunkClusters clusters in shared memory,
// row after row. A second kernel adds the parts in order. Sums are in float64, so that their error does not grow with
// the number of rows; those of a part are rounded once.
#include <cstdint>

#include "core/cuda/element_type.cuh"
#include "core/cuda/numeric.cuh"
#include "core/host_device.h"
#include "kmeans/cuda/kmeans_assign.cuh"

namespace deepclust {
namespace {

constexpr int kReduceThreads = 128;

// Clusters and columns of which a warp has the sums in shared memory.
constexpr int kChunkColumns = 32;
constexpr int kChunkClusters = (32 << 10) / (kChunkColumns * static_cast<int>(sizeof(double)));
constexpr int kRowsAtOnce = 16;  // whose values are on their way together

// A part has at least as many rows, so that its sums are read and written in less time than its rows.
constexpr int64_t kMinPartRows = 256;
constexpr int64_t kPartRowsPerCluster = 4;
constexpr int64_t kMaxParts = 1024;

int64_t part_rows_of(const KmeansUpdateInputs& inputs) {
  const int64_t rows = larger(kMinPartRows, kPartRowsPerCluster * inputs.clusters);
  return larger(rows, divide_up(inputs.count, kMaxParts));
}

int64_t parts_of(const KmeansUpdateInputs& inputs) {
  return larger<int64_t>(1, divide_up(inputs.count, part_rows_of(inputs)));
}

template <class Row>
struct KmeansUpdateArguments {
  using T = Widened<Row>;
  const Row* features;    // (N, D)
  const int64_t* labels;  // (N,)
  T* part_sums;           // (parts, K, D)
  int* part_counts;       // (parts, K)
  T* sums;                // (K, D)
  int64_t* counts;        // (K,)
  int64_t count, clusters, depth, parts, part_rows;
};

constexpr size_t kCountOffset = device::shared_next<double>(0, kChunkClusters* kChunkColumns);
constexpr size_t kUpdateSharedBytes = device::shared_next<int>(kCountOffset, kChunkClusters);

// Block (part, column chunk, cluster chunk), one warp; every lane has a column, so that none waits for another.
template <class Row>
__global__ void __launch_bounds__(32) sum_parts_kernel(const KmeansUpdateArguments<Row> in) {
  using T = Widened<Row>;
  DEEPCLUST_DYNAMIC_SHARED(shared);
  double* sums = device::shared_array<double>(shared, 0, kChunkClusters * kChunkColumns);  // (clusters, kChunkColumns)
  int* counts = device::shared_array<int>(shared, kCountOffset, kChunkClusters);
  const int lane = threadIdx.x;
  const int64_t k = int64_t{blockIdx.y} * kChunkColumns + lane;
  const int64_t first_cluster = int64_t{blockIdx.z} * kChunkClusters;
  const int chunk = static_cast<int>(smaller<int64_t>(kChunkClusters, in.clusters - first_cluster));
  const int64_t first = blockIdx.x * in.part_rows, last = smaller(first + in.part_rows, in.count);
  for (int c = 0; c < chunk; ++c) sums[c * kChunkColumns + lane] = 0;
  for (int c = lane; c < chunk; c += 32) counts[c] = 0;
  __syncwarp();
  for (int64_t begin = first; begin < last; begin += kRowsAtOnce) {
    int cluster[kRowsAtOnce];
    T value[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t i = begin + r;
      const int64_t c = (i < last ? in.labels[i] : -1) - first_cluster;
      cluster[r] = c >= 0 && c < chunk ? static_cast<int>(c) : -1;
      value[r] = cluster[r] >= 0 && k < in.depth ? widen(in.features[i * in.depth + k]) : T(0);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      if (cluster[r] < 0) continue;
      sums[cluster[r] * kChunkColumns + lane] += value[r];
      if (lane == 0) ++counts[cluster[r]];
    }
  }
  __syncwarp();
  const int64_t target = blockIdx.x * in.clusters + first_cluster;
  for (int c = 0; k < in.depth && c < chunk; ++c) {
    in.part_sums[(target + c) * in.depth + k] = static_cast<T>(sums[c * kChunkColumns + lane]);
  }
  for (int c = lane; blockIdx.y == 0 && c < chunk; c += 32) in.part_counts[target + c] = counts[c];
}

// Adds the parts of one element of the sums, or of one count, to a thread.
template <class Row>
__global__ void __launch_bounds__(kReduceThreads) add_parts_kernel(const KmeansUpdateArguments<Row> in) {
  using T = Widened<Row>;
  const int64_t size = in.clusters * in.depth;
  const int64_t element = int64_t{blockIdx.x} * kReduceThreads + threadIdx.x;
  if (element < size) {
    double sum = 0;
#pragma unroll 16
    for (int64_t part = 0; part < in.parts; ++part) sum += in.part_sums[part * size + element];
    in.sums[element] = static_cast<T>(sum);
  }
  if (element < in.clusters) {
    int64_t count = 0;
#pragma unroll 16
    for (int64_t part = 0; part < in.parts; ++part) count += in.part_counts[part * in.clusters + element];
    in.counts[element] = count;
  }
}

template <class Row>
cudaError_t launch_update_type(const KmeansUpdateInputs& inputs, const KmeansUpdateWorkspace& workspace, void* sums,
                               int64_t* counts, cudaStream_t stream) {
  using T = Widened<Row>;
  KmeansUpdateArguments<Row> in{};
  in.features = static_cast<const Row*>(inputs.features);
  in.labels = inputs.labels;
  in.part_sums = static_cast<T*>(workspace.field[kUpdatePartSums]);
  in.part_counts = static_cast<int*>(workspace.field[kUpdatePartCounts]);
  in.sums = static_cast<T*>(sums);
  in.counts = counts;
  in.count = inputs.count;
  in.clusters = inputs.clusters;
  in.depth = inputs.depth;
  in.parts = parts_of(inputs);
  in.part_rows = part_rows_of(inputs);
  const auto blocks = [](int64_t value, int64_t by) { return static_cast<unsigned>(divide_up(value, by)); };
  const dim3 grid(static_cast<unsigned>(in.parts), blocks(in.depth, kChunkColumns),
                  blocks(in.clusters, kChunkClusters));
  const cudaError_t error = device::launch(sum_parts_kernel<Row>, grid, dim3(32), kUpdateSharedBytes, stream, in);
  if (error != cudaSuccess) return error;
  return device::launch(add_parts_kernel<Row>, dim3(blocks(in.clusters * in.depth, kReduceThreads)),
                        dim3(kReduceThreads), 0, stream, in);
}

}  // namespace

KmeansUpdateBytes kmeans_update_bytes(const KmeansUpdateInputs& inputs) {
  const int64_t sums = parts_of(inputs) * inputs.clusters;
  const int64_t accumulator = accumulator_bytes(inputs.type);
  KmeansUpdateBytes bytes{};
  bytes.field[kUpdatePartSums] = sums * inputs.depth * accumulator;
  bytes.field[kUpdatePartCounts] = sums * static_cast<int64_t>(sizeof(int));
  return bytes;
}

cudaError_t launch_kmeans_update(const KmeansUpdateInputs& inputs, const KmeansUpdateWorkspace& workspace, void* sums,
                                 int64_t* counts, cudaStream_t stream) {
  return for_element_type(inputs.type, [&](auto element) {
    return launch_update_type<decltype(element)>(inputs, workspace, sums, counts, stream);
  });
}

}  // namespace deepclust

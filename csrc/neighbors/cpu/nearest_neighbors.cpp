// Nearest neighbors by cosine without any B x M matrix.
//
// The normalized queries of a block stay in cache, packed: a query is a lane of the vectors. The bank goes by in tiles
// of a few rows, which are normalized as they come, and which the tile core multiplies with all queries of the block. A
// score matters only if it is above its query's threshold, about the k-th best so far: a comparison per vector of
// scores, and for what is above, a place in a short list, which is cut back to the k best when it is full. In float32 a
// panel of queries is multiplied as 16-bit integers first, at half the cost, and of a tile only the scores are computed
// that may be above their thresholds (neighbor_filter.inl).
//
// Where queries make fewer blocks than there are threads, the threads share the bank instead, each with lists of its
// own. A score has the same bits wherever it is computed, and neighbors are ordered totally, by cosine and then index,
// so the k best are the same however the work was cut. Cost: B M D multiply-adds; O(B k) memory and a block and a tile
// for each thread.
#include "neighbors/nearest_neighbors.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/constants.h"
#include "core/cpu/capability.h"
#include "core/cpu/scratch.h"
#include "core/dtypes.h"
#include "core/host_device.h"

#if DEEPCLUST_X86
#include <immintrin.h>
#endif

namespace deepclust {
namespace {

constexpr int64_t kMaxBlockRows = 512;
constexpr int64_t kMaxBlockElements = int64_t{1} << 17;  // rows x depth, half of a common L2 cache
constexpr int64_t kMaxPanels = kMaxBlockRows / 8;        // of a block, whatever the instruction set
constexpr int64_t kMinFilterDepth = 32;                  // where it saves a twentieth; with fewer it was not tried
// For so many tiles all scores of a panel are computed where integers left too many open. A try that fails costs half a
// tile, so where all fail less than a fiftieth is lost.
constexpr int8_t kDoubtfulTiles = 31;
constexpr int64_t kMinSliceWork = int64_t{1} << 17;  // multiply-adds, about as long as starting a thread takes
constexpr int64_t kMinSpareEntries = 16;             // of a list, beyond k
constexpr int64_t kMaxLanes = 16;                    // of a vector: full lists are whole ones

// Neighbors of some queries as they are found, in order of index, `capacity` places for each query.
template <typename T>
struct NeighborLists {
  T* cosines;              // (queries, capacity)
  int64_t* indices;        // (queries, capacity)
  int64_t* found;          // (queries,) how many, or -1 if the query is not finite
  const int64_t* exclude;  // (queries,), or null
  int64_t k, capacity;

  // Those of the queries from `row` on.
  NeighborLists from(int64_t row) const {
    return {cosines + row * capacity,
            indices + row * capacity,
            found + row,
            exclude == nullptr ? nullptr : exclude + row,
            k,
            capacity};
  }

  void start(int64_t row, bool is_finite) const { found[row] = is_finite ? 0 : -1; }

  // Returns whether the list is full.
  bool add(int64_t row, T cosine, int64_t index) const {
    if (exclude != nullptr && exclude[row] == index) return false;
    const int64_t place = row * capacity + found[row]++;
    cosines[place] = cosine;
    indices[place] = index;
    return found[row] == capacity;
  }
};

// What the kernels read.
template <typename T, typename Source>
struct NeighborInputs {
  using Accumulation = T;
  int64_t depth;        // D
  const Source* query;  // (B, D)
  const Source* bank;   // (M, D)
  const bool* valid;    // (M,), or null
};

}  // namespace
}  // namespace deepclust

#define DEEPCLUST_KERNEL_FILE "neighbors/cpu/nearest_neighbors.inl"
#include "core/cpu/foreach_capability.h"

namespace deepclust {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

template <typename T>
struct Neighbor {
  T cosine;
  int64_t index;

  bool operator<(const Neighbor& other) const {
    return cosine > other.cosine || (cosine == other.cosine && index < other.index);
  }
};

// Writes the k nearest of a query, in order, from the lists of all slices.
template <typename T>
void merge_lists(const std::vector<NeighborLists<T>>& slices, int64_t row, std::vector<Neighbor<T>>& merged,
                 T* cosines,       // (k,)
                 int64_t* indices  // (k,)
) {
  const int64_t k = slices[0].k;
  merged.clear();
  for (const NeighborLists<T>& lists : slices) {
    const int64_t begin = row * lists.capacity;
    for (int64_t i = begin; i < begin + lists.found[row]; ++i) merged.push_back({lists.cosines[i], lists.indices[i]});
  }
  const int64_t present = std::min<int64_t>(k, merged.size());
  std::partial_sort(merged.begin(), merged.begin() + present, merged.end());
  const bool is_finite = slices[0].found[row] >= 0;
  for (int64_t i = 0; i < k; ++i) {
    cosines[i] = i < present ? merged[i].cosine
                             : (is_finite ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::quiet_NaN());
    indices[i] = i < present ? merged[i].index : -1;
  }
}

template <typename T, typename Source>
std::tuple<at::Tensor, at::Tensor> find_neighbors(const at::Tensor& query, const at::Tensor& bank, int64_t k,
                                                  const OptionalTensor& exclude, const OptionalTensor& valid) {
  const int64_t count = query.size(0);
  const int64_t candidates = bank.size(0);
  const int64_t depth = query.size(1);
  const at::Tensor cosines = at::empty({count, k}, query.options().dtype(c10::CppTypeToScalarType<T>::value));
  const at::Tensor indices = at::empty({count, k}, query.options().dtype(at::kLong));
  if (count == 0) return {to_dtype(cosines, query.scalar_type()), indices};
  T* cosine = cosines.mutable_data_ptr<T>();
  int64_t* index = indices.mutable_data_ptr<int64_t>();
  using Inputs = NeighborInputs<T, Source>;
  const Inputs in{depth, query.const_data_ptr<Source>(), bank.const_data_ptr<Source>(),
                  valid ? valid->const_data_ptr<bool>() : nullptr};
  const int64_t* excluded = exclude ? exclude->const_data_ptr<int64_t>() : nullptr;

  // Step 1: how the work is cut. Usually each task has a block of queries and the whole bank. If there are fewer blocks
  // than threads, a block's bank is cut into slices too, which threads search at the same time.
  const int64_t threads = at::get_num_threads();
  int64_t blocks = divide_up(count, DEEPCLUST_SELECT(query_block_rows<T>)(depth));
  const bool share_bank = blocks < threads;
  if (!share_bank) blocks = round_up(blocks, threads);
  const int64_t block_rows = divide_up(count, blocks);
  const int64_t group_rows = share_bank ? block_rows : count;  // queries whose lists are kept at a time
  const int64_t worthwhile = std::max<int64_t>(1, group_rows * candidates * depth / kMinSliceWork);
  const int64_t slices = share_bank ? std::min(threads, worthwhile) : 1;
  const int64_t capacity = divide_up(k + std::max(k, kMinSpareEntries), kMaxLanes) * kMaxLanes;
  const int64_t workspace = DEEPCLUST_SELECT(search_workspace<T>)(block_rows, depth);
  const int64_t places = slices * group_rows * capacity;
  Scratch<T> list_cosines(places);
  Scratch<int64_t> list_indices(places);
  T* const places_of_cosines = list_cosines.take(places);
  int64_t* const places_of_indices = list_indices.take(places);
  std::vector<int64_t> found(slices * group_rows);
  std::atomic<bool> finite{true};
  for (int64_t first = 0; first < count; first += group_rows) {
    const int64_t rows = std::min(group_rows, count - first);
    // Step 2: each query gets a list of its nearest rows in each slice.
    std::vector<NeighborLists<T>> lists;
    for (int64_t slice = 0; slice < slices; ++slice) {
      const NeighborLists<T> all{places_of_cosines, places_of_indices, found.data(), nullptr, k, capacity};
      lists.push_back(all.from(slice * group_rows));
      if (excluded != nullptr) lists.back().exclude = excluded + first;
    }
    at::parallel_for(0, divide_up(rows, block_rows) * slices, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(workspace);
      T* memory = scratch.take(workspace);
      for (int64_t task = begin; task < end && finite; ++task) {
        const int64_t slice = task % slices;
        const int64_t row = task / slices * block_rows;
        const bool slice_is_finite = DEEPCLUST_SELECT(search_slice<Inputs>)(
            in, first + row, std::min(block_rows, rows - row), slice * candidates / slices,
            (slice + 1) * candidates / slices, lists[slice].from(row), memory);
        if (!slice_is_finite) finite = false;
      }
    });
    if (!finite) break;
    // Step 3: the lists of a query's slices become one, in order.
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      std::vector<Neighbor<T>> merged;
      for (int64_t row = begin; row < end; ++row) {
        merge_lists(lists, row, merged, cosine + (first + row) * k, index + (first + row) * k);
      }
    });
  }
  if (!finite) {  // NaN or infinity anywhere makes everything NaN
    cosines.fill_(std::numeric_limits<double>::quiet_NaN());
    indices.fill_(-1);
  }
  return {to_dtype(cosines, query.scalar_type()), indices};
}

std::tuple<at::Tensor, at::Tensor> nearest_neighbors_cpu(const at::Tensor& query,        // (B, D)
                                                         const at::Tensor& bank,         // (M, D)
                                                         int64_t k,                      //
                                                         const OptionalTensor& exclude,  // (B,) int64
                                                         const OptionalTensor& valid     // (M,) bool
) {
  check_nearest_neighbors(query, bank, k, exclude, valid);
  const auto contiguous = [](const OptionalTensor& x) { return x ? OptionalTensor(x->contiguous()) : std::nullopt; };
  const auto find = [&](auto accumulation, auto source) {
    return find_neighbors<decltype(accumulation), decltype(source)>(query.contiguous(), bank.contiguous(), k,
                                                                    contiguous(exclude), contiguous(valid));
  };
  switch (query.scalar_type()) {
    case at::kDouble:
      return find(double(), double());
    case at::kHalf:
      return find(float(), at::Half());
    case at::kBFloat16:
      return find(float(), at::BFloat16());
    default:
      return find(float(), float());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(deepclust_ext, CPU, m) { m.impl("nearest_neighbors", nearest_neighbors_cpu); }

}  // namespace deepclust

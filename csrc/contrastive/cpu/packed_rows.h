// Inputs of the contrastive loss as rows that its kernels read: features, normalized if asked for, and class vectors.
// Included after the kernels of fused_contrastive_loss.inl, which do the packing.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "contrastive/contrastive_row.h"
#include "contrastive/cpu/block_pairs.h"
#include "core/cpu/scratch.h"
#include "core/dtypes.h"
#include "core/host_device.h"

namespace deepclust {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

struct Options {
  ContrastiveOptions loss;
  bool normalize;
};

// One input: features (B, D) and class vectors (B, K), if there are any.
struct Source {
  at::Tensor z, classes;

  Source(const at::Tensor& features, const OptionalTensor& class_vectors)
      : z(to_accumulation(features)), classes(class_vectors ? to_accumulation(*class_vectors) : at::Tensor()) {}
};

enum class Keep { kRows, kRowsAndPanels, kNorms };

// The rows of some inputs, one input after the other, packed; of a queue only their norms are kept.
template <typename T>
class PackedRows {
 public:
  PackedRows(std::vector<Source> sources, const Options& options, Keep keep)
      : sources_(std::move(sources)),
        dims_(sources_[0].z.size(1)),
        classes_(sources_[0].classes.defined() ? sources_[0].classes.size(1) : 0),
        source_rows_(sources_[0].z.size(0)),
        count_(source_rows_ * static_cast<int64_t>(sources_.size())),
        depth_(dims_ + classes_),
        stride_(DEEPCLUST_SELECT(block_stride)(depth_)),
        class_scale_(std::sqrt(options.loss.temperature / options.loss.class_temperature)),
        normalize_(options.normalize),
        scratch_(size_of(count_, depth_, stride_, keep)),
        inverse_norm_(scratch_.take(count_)) {
    const int64_t width = DEEPCLUST_SELECT(panel_columns<T>)();
    const int64_t padded = round_up(count_, width);
    const bool with_panels = keep == Keep::kRowsAndPanels;
    T* zeros = scratch_.take(depth_);
    std::fill(zeros, zeros + depth_, T(0));
    if (keep != Keep::kNorms) {
      rows_ = scratch_.take((count_ + kTileRows) * stride_);
      std::fill(rows_ + count_ * stride_, rows_ + (count_ + kTileRows) * stride_, T(0));  // read by the last row panel
    }
    if (with_panels) {
      panels_ = scratch_.take(padded * depth_);
      bias_ = scratch_.take(padded);
    }
    std::vector<T> largest(padded / width);
    at::parallel_for(0, padded / width, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> unkept(rows_ ? 0 : stride_);
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * width;
        for (int64_t row = first; row < std::min(first + width, count_); ++row) {
          const T squares = pack(row, rows_ ? rows_ + row * stride_ : unkept.data());
          largest[panel] = std::max(largest[panel], squares);
        }
        if (with_panels) {
          DEEPCLUST_SELECT(pack_panel<T>)(rows_, first, count_, depth_, stride_, zeros, panels_ + first * depth_,
                                          bias_ + first);
        }
      }
    });
    for (const T squares : largest) largest_square_ = std::max(largest_square_, squares);
  }

  int64_t count() const { return count_; }
  int64_t depth() const { return depth_; }
  int64_t stride() const { return stride_; }
  const T* rows() const { return rows_; }      // (count + kTileRows, stride)
  const T* panels() const { return panels_; }  // (padded, depth)
  const T* bias() const { return bias_; }      // (padded,)

  // Largest norm of a row; infinite if an element is not finite or a square overflows.
  T largest_norm() const { return std::sqrt(largest_square_); }

  // Packs the rows from `first` on again, which have not been kept.
  void pack_block(int64_t first, int64_t rows, T* block /* (rows, stride) */) const {
    for (int64_t r = 0; r < rows; ++r) {
      const auto [z, classes] = row_of(first + r);
      DEEPCLUST_SELECT(repack_features<T>)(z, classes, dims_, classes_, stride_, inverse_norm_[first + r], class_scale_,
                                           block + r * stride_);
    }
  }

  // Carries a gradient by the packed rows of input `which` back to its features or to its class vectors.
  at::Tensor feature_gradient(const T* gradient /* (count, stride) */, size_t which) const {
    const at::Tensor& z = sources_[which].z;
    const at::Tensor result = at::empty(z.sizes(), z.options());
    const T* values = z.const_data_ptr<T>();
    T* target = result.mutable_data_ptr<T>();
    const int64_t first = static_cast<int64_t>(which) * source_rows_;
    at::parallel_for(0, source_rows_, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* from = gradient + (first + row) * stride_;
        T* to = target + row * dims_;
        std::copy(from, from + dims_, to);
        if (normalize_) {
          DEEPCLUST_SELECT(project_gradient<T>)(to, values + row * dims_, inverse_norm_[first + row], dims_);
        }
      }
    });
    return result;
  }

  at::Tensor class_gradient(const T* gradient /* (count, stride) */, size_t which) const {
    const at::Tensor& classes = sources_[which].classes;
    const at::Tensor result = at::empty(classes.sizes(), classes.options());
    T* target = result.mutable_data_ptr<T>();
    const T* from = gradient + static_cast<int64_t>(which) * source_rows_ * stride_ + dims_;
    for (int64_t row = 0; row < source_rows_; ++row, from += stride_, target += classes_) {
      for (int64_t k = 0; k < classes_; ++k) target[k] = from[k] * class_scale_;
    }
    return result;
  }

 private:
  static int64_t size_of(int64_t count, int64_t depth, int64_t stride, Keep keep) {
    const auto size = Scratch<T>::size_of;
    const int64_t kept = keep == Keep::kNorms ? 0 : count + kTileRows;
    const int64_t padded = keep == Keep::kRowsAndPanels ? round_up(count, DEEPCLUST_SELECT(panel_columns<T>)()) : 0;
    return size(kept * stride) + size(count) + size(depth) + size(padded * depth) + size(padded);
  }

  // Features and class vector of a row; no class vector is null.
  std::pair<const T*, const T*> row_of(int64_t row) const {
    const Source& source = sources_[row / source_rows_];
    const int64_t index = row % source_rows_;
    return {source.z.template const_data_ptr<T>() + index * dims_,
            classes_ > 0 ? source.classes.template const_data_ptr<T>() + index * classes_ : nullptr};
  }

  T pack(int64_t row, T* packed /* (stride,) */) {
    const auto [z, classes] = row_of(row);
    return DEEPCLUST_SELECT(pack_features<T>)(z, classes, dims_, classes_, stride_, normalize_, class_scale_, packed,
                                              inverse_norm_ + row);
  }

  std::vector<Source> sources_;
  int64_t dims_, classes_, source_rows_;
  int64_t count_, depth_, stride_;
  T class_scale_;
  bool normalize_;
  Scratch<T> scratch_;
  T* inverse_norm_;
  T* rows_ = nullptr;
  T* panels_ = nullptr;
  T* bias_ = nullptr;
  T largest_square_ = 0;
};

}  // namespace
}  // namespace deepclust

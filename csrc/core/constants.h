// Numbers that several kernels share.
#pragma once

namespace deepclust {

// Rows are divided by max(norm, this), as torch.nn.functional.normalize does. A row below it has no direction and gets
// gradient 0: the derivative there, 1e12, would drown all other rows where gradients are clipped by their norm.
constexpr double kMinNorm = 1e-12;
constexpr double kMinSquaredDistance = 1e-12;  // squared distances below this count as this, with gradient 0

}  // namespace deepclust

// Numbers that several kernels share.
#pragma once

namespace deepclust {

constexpr double kMinNorm = 1e-12;  // rows are divided by max(norm, this), as torch.nn.functional.normalize does
constexpr double kMinSquaredDistance = 1e-12;  // squared distances below this count as this, with gradient 0

}  // namespace deepclust

// A column that a search keeps for later.
#pragma once

#include <cstdint>
#include <type_traits>

namespace deepclust {

template <class T>
struct alignas(2 * sizeof(T)) Candidate {  // moved as one vector, so without padding
  T score;
  std::conditional_t<sizeof(T) == 8, int64_t, int32_t> column;
};

}  // namespace deepclust

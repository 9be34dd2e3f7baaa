// The published vectors of Philox4x32-10 (Random123, kat_vectors), checked by the compiler.
#include <cstdint>

#include "neighbors/philox.h"

namespace {

constexpr bool gives(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t seed, uint64_t e, uint64_t f, uint64_t g,
                     uint64_t h) {
  uint64_t words[4] = {a, b, c, d};
  deepclust::philox(words, seed);
  return words[0] == e && words[1] == f && words[2] == g && words[3] == h;
}

static_assert(gives(0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
static_assert(gives(0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffffffffffff, 0x408f276d, 0x41c83b0e,
                    0xa20bc7c6, 0x6d5451fd));
static_assert(gives(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0x299f31d0a4093822, 0xd16cfe09, 0x94fdcceb,
                    0x5001e420, 0x24126ea1));

}  // namespace

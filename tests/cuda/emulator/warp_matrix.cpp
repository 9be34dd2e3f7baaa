// Matrix products of a warp. The last lane to arrive computes for all, while the others' stacks still hold the
// operands.
#include "warp_matrix.h"

#include <cstring>

#include "block.h"
#include "checker.h"
#include "emulator.h"

namespace deepclust::emulator {
namespace {

bool is_tf32(float value) {
  const auto bits = bit_cast<uint32_t>(value);
  return (bits & 0x1fffu) == 0 || (bits & 0x7f800000u) == 0x7f800000u;  // infinity and NaN may carry anything
}

void require_tf32(float value, const Collective& collective, int lane, const char* operand) {
  if (is_tf32(value)) return;
  fail(collective.at, "%s: operand %s of lane %d was not converted to tf32", collective.name, operand, lane);
}

// One row of c += a * b, with row-major b; summed in double: the tensor cores' order of summation is not known.
template <int kInner, int kColumns>
void multiply_row(const double* a_row, const double* b, double* c_row) {
  for (int k = 0; k < kInner; ++k) {
    for (int column = 0; column < kColumns; ++column) c_row[column] += a_row[k] * b[k * kColumns + column];
  }
}

// The registers of one lane in mma.sync.
struct Registers {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

struct Tf32 {
  static constexpr const char* kName = "mma_m16n8k8_tf32";
  static constexpr int kInner = 8;
  static constexpr int kPacked = 1;  // values in one register
  static float unpack(uint32_t word, int) { return bit_cast<float>(word); }
};
struct Bf16 {
  static constexpr const char* kName = "mma_m16n8k16_bf16";
  static constexpr int kInner = 16;
  static constexpr int kPacked = 2;
  static float unpack(uint32_t word, int half) {
    return bit_cast<float>((half == 0 ? word << 16 : word & 0xffff0000u));
  }
};
struct F16 {
  static constexpr const char* kName = "mma_m16n8k16_f16";
  static constexpr int kInner = 16;
  static constexpr int kPacked = 2;
  static float unpack(uint32_t word, int half) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16 * half)));
  }
};

// d += a * b with the lanes' elements placed as the PTX ISA says for mma.m16n8k8 and mma.m16n8k16: with group = lane /
// 4 and member = lane % 4, register r of a holds row group + 8 * (r % 2), register r of b column group, and both the k
// of member and, for the upper registers, of member + 4 (counted in registers); d[i] is row group + 8 * (i / 2), column
// 2 * member + i % 2.
template <class Type>
void multiply_registers(Collective& collective, Thread*) {
  constexpr int kInner = Type::kInner, kPacked = Type::kPacked;
  double a[16 * kInner];
  double b[kInner * 8];
  double d[16 * 8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& registers = *reinterpret_cast<const Registers*>(collective.value[lane]);
    const int group = lane / 4, member = lane % 4;
    for (int half = 0; half < kPacked; ++half) {
      for (int r = 0; r < 4; ++r) {
        const float value = Type::unpack(registers.a[r], half);
        if (kPacked == 1) require_tf32(value, collective, lane, "a");
        a[(group + 8 * (r % 2)) * kInner + (member + 4 * (r / 2)) * kPacked + half] = value;
      }
      for (int r = 0; r < 2; ++r) {
        const float value = Type::unpack(registers.b[r], half);
        if (kPacked == 1) require_tf32(value, collective, lane, "b");
        b[((member + 4 * r) * kPacked + half) * 8 + group] = value;
      }
    }
    for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * member + i % 2] = registers.d[i];
  }
  for (int row = 0; row < 16; ++row) multiply_row<kInner, 8>(&a[row * kInner], b, &d[row * 8]);
  for (int lane = 0; lane < kLanes; ++lane) {
    float* target = reinterpret_cast<const Registers*>(collective.value[lane])->d;
    for (int i = 0; i < 4; ++i) {
      target[i] = static_cast<float>(d[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2]);
    }
  }
}

template <class Type>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Location at) {
  const Registers registers{d, a, {b0, b1}};
  meet(Type::kName, 0xffffffffu, Alignment::kAligned, reinterpret_cast<uint64_t>(&registers), 0, at,
       multiply_registers<Type>);
}

// For wmma; all lanes pass the same shape.
template <int m, int n, int k>
void multiply_shape(Collective& collective, Thread*) {
  double a[m * k];
  double b[k * n];
  double d[m * n];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& product = *reinterpret_cast<const FragmentProduct*>(collective.value[lane]);
    for (int i = 0; i < m * k / kLanes; ++i) {
      const auto [row, column] = fragment_element(lane, i, m, k);
      if (product.tf32) require_tf32(product.a[i], collective, lane, "a");
      a[row * k + column] = product.a[i];
    }
    for (int i = 0; i < k * n / kLanes; ++i) {
      const auto [row, column] = fragment_element(lane, i, k, n);
      if (product.tf32) require_tf32(product.b[i], collective, lane, "b");
      b[row * n + column] = product.b[i];
    }
    for (int i = 0; i < m * n / kLanes; ++i) {
      const auto [row, column] = fragment_element(lane, i, m, n);
      d[row * n + column] = product.c[i];
    }
  }
  for (int row = 0; row < m; ++row) multiply_row<k, n>(&a[row * k], b, &d[row * n]);
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& product = *reinterpret_cast<const FragmentProduct*>(collective.value[lane]);
    for (int i = 0; i < m * n / kLanes; ++i) {
      const auto [row, column] = fragment_element(lane, i, m, n);
      product.d[i] = static_cast<float>(d[row * n + column]);
    }
  }
}

}  // namespace

void multiply_fragments(const FragmentProduct& product, Location at) {
  Complete complete = multiply_shape<16, 16, 16>;
  if (product.k == 8) complete = multiply_shape<16, 16, 8>;
  if (product.m == 32) complete = multiply_shape<32, 8, 16>;
  if (product.m == 8) complete = multiply_shape<8, 32, 16>;
  meet("mma_sync", 0xffffffffu, Alignment::kAligned, reinterpret_cast<uint64_t>(&product), 0, at, complete);
}

void meet_for_matrix(const char* name, const void* pointer, unsigned leading, size_t element_bytes, Location at) {
  if (reinterpret_cast<uintptr_t>(pointer) % 32 != 0) fail(at, "%s: misaligned pointer, wmma asks for 32 bytes", name);
  if (leading * element_bytes % 16 != 0) {
    fail(at, "%s: misaligned rows, the leading dimension %u is no multiple of 16 bytes", name, leading);
  }
  meet(name, 0xffffffffu, Alignment::kAligned, reinterpret_cast<uint64_t>(pointer), leading, at,
       [](Collective& collective, Thread*) {
         for (int lane = 1; lane < kLanes; ++lane) {
           if (collective.value[lane] == collective.value[0] && collective.extra[lane] == collective.extra[0]) continue;
           fail(collective.at, "%s: lanes 0 and %d pass different arguments", collective.name, lane);
         }
       });
}

}  // namespace deepclust::emulator

namespace deepclust::device {

using namespace emulator;

uint32_t float_to_tf32(float value) {
  const auto bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & ~0x1fffu;
}

void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Location at) {
  mma<Tf32>(d, a, b0, b1, at);
}
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Location at) {
  mma<Bf16>(d, a, b0, b1, at);
}
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Location at) {
  mma<F16>(d, a, b0, b1, at);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, Location at) {
  if (reinterpret_cast<uintptr_t>(shared_row) % 16 != 0) fail(at, "ldmatrix_x4: misaligned row");
  if (!is_shared(shared_row, 16)) fail(at, "ldmatrix_x4: the row is not within an array of shared memory");
  uint64_t rows[kLanes];
  meet("ldmatrix_x4", 0xffffffffu, Alignment::kAligned, reinterpret_cast<uint64_t>(shared_row),
       reinterpret_cast<uint64_t>(rows), at, [](Collective& collective, Thread*) {
         for (const uint64_t target : collective.extra) {
           std::memcpy(reinterpret_cast<void*>(target), collective.value, sizeof(collective.value));
         }
       });
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto* row = reinterpret_cast<const unsigned char*>(rows[matrix * 8 + lane_id() / 4]);
    const unsigned char* pair = row + lane_id() % 4 * 4;
    check_access(pair, 4, Access::kRead, at);
    std::memcpy(&r[matrix], pair, 4);
  }
}

}  // namespace deepclust::device

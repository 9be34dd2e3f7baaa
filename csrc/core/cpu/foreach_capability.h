// Compiles one kernel file once for each x86 instruction set, so that one build runs everywhere and fast where it can.
//
// A .cpp file defines DEEPCLUST_KERNEL_FILE and includes this header; the named file is then compiled in the namespaces
// deepclust::baseline, deepclust::avx2 and, unless DEEPCLUST_AVX512 is 0, deepclust::avx512, each time after
// core/cpu/vec.inl.
// DEEPCLUST_SELECT(function) gives the one for this machine. All standard and torch headers must be included before
// this one: code compiled inside a target region must not define functions that other translation units share, or an
// AVX-512 copy could be the one that the linker keeps.
#include "core/cpu/capability.h"

#if defined(__clang__)
#define DEEPCLUST_PRAGMA(text) _Pragma(#text)
#define DEEPCLUST_BEGIN_TARGET(features) \
  DEEPCLUST_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define DEEPCLUST_END_TARGET DEEPCLUST_PRAGMA(clang attribute pop)
#else
#define DEEPCLUST_PRAGMA(text) _Pragma(#text)
#define DEEPCLUST_BEGIN_TARGET(features) DEEPCLUST_PRAGMA(GCC push_options) DEEPCLUST_PRAGMA(GCC target(features))
#define DEEPCLUST_END_TARGET DEEPCLUST_PRAGMA(GCC pop_options)
#endif

#define DEEPCLUST_CAPABILITY baseline
#define DEEPCLUST_VECTOR_BYTES 16
#define DEEPCLUST_TILE_ROWS 4
#include "core/cpu/vec.inl"
#include DEEPCLUST_KERNEL_FILE
#undef DEEPCLUST_CAPABILITY
#undef DEEPCLUST_VECTOR_BYTES
#undef DEEPCLUST_TILE_ROWS

#if DEEPCLUST_X86
DEEPCLUST_BEGIN_TARGET("avx2,fma")
#define DEEPCLUST_CAPABILITY avx2
#define DEEPCLUST_VECTOR_BYTES 32
#define DEEPCLUST_TILE_ROWS 6
#include "core/cpu/vec.inl"
#include DEEPCLUST_KERNEL_FILE
#undef DEEPCLUST_CAPABILITY
#undef DEEPCLUST_VECTOR_BYTES
#undef DEEPCLUST_TILE_ROWS
DEEPCLUST_END_TARGET
#endif

#if DEEPCLUST_AVX512
DEEPCLUST_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define DEEPCLUST_CAPABILITY avx512
#define DEEPCLUST_VECTOR_BYTES 64
#define DEEPCLUST_TILE_ROWS 8
#include "core/cpu/vec.inl"
#include DEEPCLUST_KERNEL_FILE
#undef DEEPCLUST_CAPABILITY
#undef DEEPCLUST_VECTOR_BYTES
#undef DEEPCLUST_TILE_ROWS
DEEPCLUST_END_TARGET
#endif

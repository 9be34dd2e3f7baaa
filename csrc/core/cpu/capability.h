// Which of the compiled instruction sets runs: torch's choice, so ATEN_CPU_CAPABILITY=default|avx2|avx512 governs it,
// but never one that the processor lacks. torch believes that variable whatever the processor is.
#pragma once

#include <ATen/Version.h>

#include <algorithm>
#include <string>

#if !defined(DEEPCLUST_X86)  // 0 leaves out all of x86: what other processors run
#if defined(__x86_64__) && defined(__GNUC__)
#define DEEPCLUST_X86 1
#else
#define DEEPCLUST_X86 0
#endif
#endif
#if !defined(DEEPCLUST_AVX512)  // 0 leaves its kernels out
#define DEEPCLUST_AVX512 DEEPCLUST_X86
#endif

namespace deepclust {

enum class Capability { kBaseline, kAvx2, kAvx512 };  // each has all instructions of those before it

// What processor and operating system can run, by the features that foreach_capability.h compiles for.
inline Capability processor_capability() {
#if DEEPCLUST_X86
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Capability::kBaseline;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return DEEPCLUST_AVX512 && has_avx512 ? Capability::kAvx512 : Capability::kAvx2;
#else
  return Capability::kBaseline;
#endif
}

// What torch runs, or would run, since it does not ask the processor where ATEN_CPU_CAPABILITY is set.
inline Capability torch_capability() {
  const std::string name = at::get_cpu_capability();
  if (name.rfind("AVX512", 0) == 0) return Capability::kAvx512;
  return name == "AVX2" ? Capability::kAvx2 : Capability::kBaseline;
}

inline Capability cpu_capability() {
  static const Capability chosen = std::min(torch_capability(), processor_capability());
  return chosen;
}

// Whether the AVX-512 kernels may multiply bfloat16 too.
inline bool has_bfloat16() {
#if DEEPCLUST_X86
  return cpu_capability() == Capability::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

inline const char* capability_name(Capability capability) {
  return capability == Capability::kAvx512 ? "AVX512" : capability == Capability::kAvx2 ? "AVX2" : "baseline";
}

}  // namespace deepclust

#if DEEPCLUST_AVX512
#define DEEPCLUST_SELECT(function)                                                                   \
  (::deepclust::cpu_capability() == ::deepclust::Capability::kAvx512 ? ::deepclust::avx512::function \
   : ::deepclust::cpu_capability() == ::deepclust::Capability::kAvx2 ? ::deepclust::avx2::function   \
                                                                     : ::deepclust::baseline::function)
#elif DEEPCLUST_X86
#define DEEPCLUST_SELECT(function)                                                               \
  (::deepclust::cpu_capability() == ::deepclust::Capability::kAvx2 ? ::deepclust::avx2::function \
                                                                   : ::deepclust::baseline::function)
#else
#define DEEPCLUST_SELECT(function) (::deepclust::baseline::function)
#endif

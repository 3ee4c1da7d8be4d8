#include "dispatch.hpp"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace weightguard {

namespace {

#if defined(__x86_64__)
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

const Kernel* fastest() {
    const Kernel* kernels[kMaxKernels];
    return kernels[available_kernels(kernels) - 1];
}

std::atomic<const Kernel*>& selected() {
    static std::atomic<const Kernel*> kernel{fastest()};
    return kernel;
}

}  // namespace

int available_kernels(const Kernel* (&kernels)[kMaxKernels]) {
    int n = 0;
    kernels[n++] = &portable_kernel;
#if defined(__x86_64__)
    if (has_avx2()) kernels[n++] = &avx2_kernel;
    if (has_avx512()) kernels[n++] = &avx512_kernel;
#elif defined(__aarch64__)
    kernels[n++] = &neon_kernel;
#endif
    return n;
}

const Kernel& active_kernel() { return *selected().load(std::memory_order_relaxed); }

bool select_kernel(const char* name) {
    const Kernel* kernels[kMaxKernels];
    const int n = available_kernels(kernels);
    for (int i = 0; i < n; ++i) {
        if (std::strcmp(kernels[i]->name, name) == 0) {
            selected().store(kernels[i], std::memory_order_relaxed);
            return true;
        }
    }
    return false;
}

#if defined(__x86_64__)
FloatEnvironment::FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
FloatEnvironment::~FloatEnvironment() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
FloatEnvironment::FloatEnvironment() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
}
FloatEnvironment::~FloatEnvironment() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
FloatEnvironment::FloatEnvironment() : saved_(0) {}
FloatEnvironment::~FloatEnvironment() {}
#endif

}  // namespace weightguard

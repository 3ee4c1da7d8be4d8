#include "dispatch.hpp"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace weightguard::ternary {

namespace {

#if defined(__x86_64__)
bool has_avxvnni() {  // the compiler's own test came later than the instructions
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
           (a & (1u << 4));
}
bool has_avx512() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
bool has_dot_product() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every Apple processor of this family has it
#endif
}
#endif

const Kernel* fastest() {
    const Kernel* kernels[kMostKernels];
    return kernels[available_kernels(kernels) - 1];
}

std::atomic<const Kernel*>& selected() {
    static std::atomic<const Kernel*> kernel{fastest()};
    return kernel;
}

}  // namespace

int available_kernels(const Kernel* (&kernels)[kMostKernels]) {
    int n = 0;
    kernels[n++] = &scalar_kernel;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) kernels[n++] = &avx2_kernel;
    if (has_avxvnni()) kernels[n++] = &avxvnni_kernel;
    if (has_avx512()) kernels[n++] = &avx512_kernel;
#elif defined(__aarch64__)
    if (has_dot_product()) kernels[n++] = &neon_kernel;
#endif
    return n;
}

const Kernel& active_kernel() { return *selected().load(std::memory_order_relaxed); }

bool select_kernel(const char* name) {
    const Kernel* kernels[kMostKernels];
    const int n = available_kernels(kernels);
    for (int i = 0; i < n; ++i)
        if (std::strcmp(kernels[i]->name, name) == 0) {
            selected().store(kernels[i], std::memory_order_relaxed);
            return true;
        }
    return false;
}

}  // namespace weightguard::ternary

// Which instruction sets this processor has, and which one is in use.
#pragma once

#include "kernel.hpp"

namespace weightguard {

constexpr int kMaxKernels = 4;

// The kernels this processor can run, slowest first; returns how many.
int available_kernels(const Kernel* (&kernels)[kMaxKernels]);

// The kernel in use: the fastest, until another is selected.
const Kernel& active_kernel();

// Selects a kernel by name for the whole process; false when this processor cannot run it.
bool select_kernel(const char* name);

// Round to nearest, no flushing of subnormals, as IEEE 754 has it, while this object lives: some
// libraries change these for the whole thread.
class FloatEnvironment {
  public:
    FloatEnvironment();
    ~FloatEnvironment();
    FloatEnvironment(const FloatEnvironment&) = delete;
    FloatEnvironment& operator=(const FloatEnvironment&) = delete;

  private:
    uint64_t saved_;
};

}  // namespace weightguard

// Which instruction sets this processor has, and which one is in use.
#pragma once

#include "kernel.hpp"

namespace weightguard::ternary {

constexpr int kMostKernels = 4;

// The kernels this processor can run, slowest first; returns how many.
int available_kernels(const Kernel* (&kernels)[kMostKernels]);

// The kernel in use: the fastest, until another is selected.
const Kernel& active_kernel();

// Selects a kernel by name for the whole process; false when this processor cannot run it.
bool select_kernel(const char* name);

}  // namespace weightguard::ternary

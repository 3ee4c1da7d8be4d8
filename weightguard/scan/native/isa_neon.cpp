// NEON, which every 64-bit ARM processor has.
#define WG_VECTOR_BYTES 16
#define WG_KERNEL neon_kernel
#define WG_KERNEL_NAME "neon"
#include "drive.hpp"

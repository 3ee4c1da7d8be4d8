// AVX2 with FMA and F16C; compiled with those flags, called only where they exist.
#define WG_VECTOR_BYTES 32
#define WG_KERNEL avx2_kernel
#define WG_KERNEL_NAME "avx2"
#include "drive.hpp"

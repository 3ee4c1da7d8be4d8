// AVX-512 F, BW, DQ, VL and VNNI; compiled with those flags, called only where they exist.
#define WG_VECTOR_BYTES 64
#define WG_KERNEL avx512_kernel
#define WG_KERNEL_NAME "avx512"
#include "drive.hpp"

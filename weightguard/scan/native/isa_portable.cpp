// Any processor: vectors of 16 bytes as the compiler sees fit, no feature beyond the base.
#define WG_VECTOR_BYTES 16
#define WG_KERNEL portable_kernel
#define WG_KERNEL_NAME "portable"
#include "drive.hpp"

// A value as torch would store it. Joined behind common/dequant.cuh; INPUT and OUTPUT alike.

#include "common/dequant.cuh"

__device__ __forceinline__ float rounded(float x) {
#if OUTPUT == 0
  return x;
#else
  u16 bits;
  store(&bits, 0, x);
  return load_input(&bits, 0);
#endif
}

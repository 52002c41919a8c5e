/* In place of CUDA's headers, what NCCL's need of them. */
#ifndef EPOXIDE_CUDA_RUNTIME_H
#define EPOXIDE_CUDA_RUNTIME_H
#include <stdbool.h>
#define CUDART_VERSION 13000
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
#endif

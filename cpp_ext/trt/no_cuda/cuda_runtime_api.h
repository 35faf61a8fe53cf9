/* For the host-launcher build on a machine without CUDA's headers: the two opaque handles that TensorRT's
 * headers mention. Never on the include path of a build that has the real file. */
#ifndef SPEECHSSM_NO_CUDA_RUNTIME_API_H
#define SPEECHSSM_NO_CUDA_RUNTIME_API_H
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
#endif

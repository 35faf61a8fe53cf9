/* The device launchers. `stream` is a cudaStream_t; it is passed as void* so that a caller needs no CUDA
 * header. A launcher checks, launches and returns: no allocation, no synchronisation, no host copy, so
 * every one may be captured in a CUDA graph. All pointers in the structs are device pointers. */
#ifndef SPEECHSSM_CUDA_API_H
#define SPEECHSSM_CUDA_API_H

#include "speechssm/conv4_api.h"
#include "speechssm/rglru_api.h"
#include "speechssm/ring_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One token for each row. version 1: one channel per thread. version 2: 16 bytes of each stream per
 * thread, falls back to 1 where widths, strides or addresses are not multiples of that. 0: the best. */
SPEECHSSM_EXPORT int32_t speechssm_rglru_step_cuda(const speechssm_rglru* call, int32_t version, void* stream);

/* A chunk. version 1: three phases over chunks of call->chunk tokens, through call->workspace.
 * version 2: each channel walks its tokens, several loads ahead; no workspace, reads the input once.
 * 0: 2 when rows alone fill the device or there is no workspace, else 1. */
SPEECHSSM_EXPORT int32_t speechssm_rglru_scan_cuda(const speechssm_rglru* call, int32_t version, void* stream);

/* The causal convolution before the gates, steps and chunks alike. */
SPEECHSSM_EXPORT int32_t speechssm_conv4_cuda(const speechssm_conv4* call, void* stream);

/* Attention over the ring, then the append. version 1: a block walks all slots of a key/value head of a row,
 * and the tokens of a chunk. version 2: a step; each number is read once for up to five query heads, and with
 * call->pieces (2 or more) blocks share the slots of a head through call->workspace. 0: 2 for a step, in pieces where
 * the workspace is large enough, else 1. 2 falls back to 1 where head_dim or addresses are not multiples of four
 * numbers. A float16 or bfloat16 stream takes a ring of its own type or int8. */
SPEECHSSM_EXPORT int32_t speechssm_ring_cuda(const speechssm_ring* call, int32_t version, void* stream);

#ifdef __cplusplus
}
#endif
#endif

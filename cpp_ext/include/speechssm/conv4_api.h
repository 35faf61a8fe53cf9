/* The C interface of the causal convolution of width 4; the rules of rglru_api.h hold here too. */
#ifndef SPEECHSSM_CONV4_API_H
#define SPEECHSSM_CONV4_API_H

#include "speechssm/rglru_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* u and y (strides as in speechssm_rglru), state (slot, 3, e) oldest input first: all of one dtype.
 * weight is (4, e), index 3 multiplying the current input. y must not overlap the inputs, except that
 * it may be u exactly. An inactive row keeps its state bit for bit and gets y = 0. */
typedef struct speechssm_conv4 {
    uint64_t struct_bytes; /* sizeof(speechssm_conv4) */
    int32_t dtype;
    int32_t tokens;
    int32_t rows;
    int32_t width;
    int32_t slot_count;
    int32_t reserved; /* 0 */
    int64_t token_stride;
    int64_t row_stride;
    const void* u;
    void* y;
    const float* weight;
    const float* bias; /* (e) or NULL */
    const void* state_in;
    void* state_out;
    const int64_t* position;
    const int64_t* lengths; /* (b) or NULL */
    const uint8_t* active;  /* (b) or NULL */
    const int32_t* slots;   /* (b) or NULL */
} speechssm_conv4;

SPEECHSSM_EXPORT int32_t speechssm_conv4_host(const speechssm_conv4* call);

#ifdef __cplusplus
}
#endif
#endif

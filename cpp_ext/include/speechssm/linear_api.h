/* The C interface of linear layers with what stands around them; the rules of rglru_api.h hold here too.
 *
 *   n = x / sqrt(mean(x x) + epsilon) norm        where norm is given, else n = x
 *   p = n W^T + bias                              W (fan_out, fan_in), rows as they lie in memory
 *   y = act(p)  or  act(p) (n U^T + times_bias)   where a second matrix U is given: a gated layer
 *   y = residual + y                              where residual is given
 *
 * Axis letters: r rows. Everything but the matrices is float32.
 */
#ifndef SPEECHSSM_LINEAR_API_H
#define SPEECHSSM_LINEAR_API_H

#include "speechssm/rglru_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How a matrix is stored, beside SPEECHSSM_F32, _F16 and _BF16: blocks of 128 inputs as unsigned numbers around
 * 2^(bits-1) with a float32 scale each, (fan_out, blocks, 128 bits/8) and (fan_out, blocks); two 4-bit numbers to a
 * byte, the first in the low half. That is the layout of ONNX Runtime's MatMulNBits. */
enum { SPEECHSSM_BLOCKS8 = 4, SPEECHSSM_BLOCKS4 = 5, SPEECHSSM_LINEAR_BLOCK = 128 };

enum { SPEECHSSM_NO_ACTIVATION = 0, SPEECHSSM_GELU_TANH = 1, SPEECHSSM_GELU = 2, SPEECHSSM_SILU = 3 };

/* With blocks, n is cut to 8 bits, a scale for each row and block: max |n| / 127. A row in which some n is not
 * finite gives NaN. A row's y depends on nothing but the row: not on its mates, their number, or the processor. */
typedef struct speechssm_linear {
    uint64_t struct_bytes; /* sizeof(speechssm_linear) */
    int32_t rows;
    int32_t fan_in;
    int32_t fan_out;
    int32_t stored; /* of both matrices */
    int32_t activation;
    float epsilon;
    int64_t x_stride;  /* from row to row of x; 0: fan_in */
    int64_t y_stride;  /* of y and residual; 0: fan_out */
    const float* x;    /* (r, fan_in) */
    const float* norm; /* (fan_in) or NULL */
    const void* weight;
    const float* scale; /* with blocks */
    const float* bias;  /* (fan_out) or NULL */
    const void* times;  /* the second matrix, or NULL */
    const float* times_scale;
    const float* times_bias;
    const float* residual; /* (r, fan_out) or NULL; may be y */
    float* y;              /* (r, fan_out); must not overlap x */
    void* workspace;       /* speechssm_linear_workspace_bytes, aligned to 64 */
    int64_t workspace_bytes;
} speechssm_linear;

SPEECHSSM_EXPORT int64_t speechssm_linear_workspace_bytes(int32_t rows, int32_t fan_in);

/* version 1: the fastest instruction set of this processor; 2: plain loops in float64, the reference. */
SPEECHSSM_EXPORT int32_t speechssm_linear_host(const speechssm_linear* call, int32_t version);

#ifdef __cplusplus
}
#endif

#endif

/* The C interface of the RG-LRU launchers, on hosts and devices alike.
 *
 * Axis letters: b rows, t tokens, e width of the recurrence. One struct serves a decode step
 * (tokens = 1) and a prefill scan. All pointers are host pointers for the *_host functions and device
 * pointers for the *_cuda ones. Nothing here allocates, synchronises or keeps anything between calls.
 */
#ifndef SPEECHSSM_RGLRU_API_H
#define SPEECHSSM_RGLRU_API_H

#include <stdint.h>

#if defined(_WIN32)
#define SPEECHSSM_EXPORT __declspec(dllexport)
#else
#define SPEECHSSM_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { SPEECHSSM_F32 = 0, SPEECHSSM_F16 = 1, SPEECHSSM_BF16 = 2 };

/* x, gate_x, gate_a, branch and y share one dtype and one pair of strides: element (t, b, e) is at
 * t * token_stride + b * row_stride + e, so time-major and row-major layouts are both direct.
 *
 * Row b uses state row slots[b] (b itself when slots is NULL) of state_in and writes state_out, which
 * may be the same memory. Two rows of one call must not name one slot. A row runs lengths[b] tokens
 * (all when NULL); an inactive row, a length below 1 or a slot outside [0, slot_count) runs none: its
 * gates are not read, its y is 0, and its state (where the slot exists) is copied bit for bit.
 * Token t of row b is a reset row when position[b] + t == 0. y is 0 at padded tokens.
 */
typedef struct speechssm_rglru {
    uint64_t struct_bytes; /* sizeof(speechssm_rglru): a caller of another version is refused */
    int32_t dtype;
    int32_t tokens;     /* t */
    int32_t rows;       /* b */
    int32_t width;      /* e */
    int32_t slot_count; /* rows of state_in and state_out; at least b when slots is NULL */
    int32_t chunk;      /* tokens per chunk of the chunked scan; 0 lets the launcher choose */
    int64_t token_stride;
    int64_t row_stride;
    const void* x;
    const void* gate_x; /* pre-activation */
    const void* gate_a; /* pre-activation */
    const void* branch; /* optional: y = h * branch (the gelu branch of the block) */
    void* y;            /* must not overlap the inputs, except that it may be x exactly */
    const float* decay; /* (e) = -8 softplus(Lambda) */
    const float* state_in;
    float* state_out;
    const int64_t* position; /* (b) of the first token */
    const int64_t* lengths;  /* (b) or NULL */
    const uint8_t* active;   /* (b) or NULL */
    const int32_t* slots;    /* (b) or NULL */
    void* workspace;         /* chunked scan only: speechssm_rglru_workspace_bytes */
    int64_t workspace_bytes;
} speechssm_rglru;

/* 0 is success. speechssm_status_text gives a sentence for each. */
enum {
    SPEECHSSM_OK = 0,
    SPEECHSSM_BAD_STRUCT = 1,
    SPEECHSSM_BAD_SHAPE = 2,
    SPEECHSSM_BAD_DTYPE = 3,
    SPEECHSSM_NULL_POINTER = 4,
    SPEECHSSM_BAD_STRIDE = 5,
    SPEECHSSM_BAD_SLOTS = 6,
    SPEECHSSM_SMALL_WORKSPACE = 7,
    SPEECHSSM_NOT_A_STEP = 8,
    SPEECHSSM_LAUNCH_FAILED = 9,
    SPEECHSSM_NO_SUCH_VERSION = 10,
    SPEECHSSM_BAD_HEADS = 11,
    SPEECHSSM_BAD_RING = 12,
    SPEECHSSM_BAD_STORAGE = 13
};

SPEECHSSM_EXPORT const char* speechssm_status_text(int32_t status);

/* Bytes of workspace a chunked scan needs; chunk as in the struct, never 0. */
SPEECHSSM_EXPORT int64_t speechssm_rglru_workspace_bytes(int32_t tokens, int32_t rows, int32_t width, int32_t chunk);

/* Hosts. version 1: one token after another, vectorised over e by the best instruction set found
 * (step and scan give the same bits). version 2 (scan only): the three phases of the chunked scan
 * by loops, which is what the device runs. */
SPEECHSSM_EXPORT int32_t speechssm_rglru_step_host(const speechssm_rglru* call);
SPEECHSSM_EXPORT int32_t speechssm_rglru_scan_host(const speechssm_rglru* call, int32_t version);

/* 0 scalar, 1 AVX2, 2 AVX-512. set returns what is used from then on: never more than the processor has. */
SPEECHSSM_EXPORT int32_t speechssm_host_isa(void);
SPEECHSSM_EXPORT int32_t speechssm_host_set_isa(int32_t isa);

#ifdef __cplusplus
}
#endif
#endif

/* The C interface of the sampler: one token a row from logits, settings and one uniform number.
 * The rules of rglru_api.h hold here too.
 *
 *   w = exp(logits / T - max)          T the temperature; 1 where it is not above 0, which asks for the likeliest token
 *   top_k 0 and top_p 1                the first token whose cumulative w passes uniform * sum w
 *   else                               the same over the min(top_k, k_max) likeliest, sorted, cut to the shortest
 *                                      prefix whose w reaches top_p of theirs
 *
 * Axis letters: b rows, v vocabulary.
 */
#ifndef SPEECHSSM_SAMPLE_API_H
#define SPEECHSSM_SAMPLE_API_H

#include "speechssm/rglru_api.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SPEECHSSM_SAMPLE_BLOCK = 256 }; /* weights to a sum */

/* A row's results depend on nothing but the row. logprob is that of the token among all w. finite is 0, or NaN where
 * a logit is NaN or infinite above; the token is then still one of the vocabulary. */
typedef struct speechssm_sample {
    uint64_t struct_bytes; /* sizeof(speechssm_sample) */
    int32_t rows;
    int32_t vocab;
    int32_t k_max; /* most candidates that are sorted; at least 1 */
    int32_t reserved; /* 0 */
    const float* logits;      /* (b,v) */
    const float* temperature; /* (b) */
    const int64_t* top_k;     /* (b), 0: no limit */
    const float* top_p;       /* (b) */
    const float* uniform;     /* (b) in [0, 1) */
    int64_t* token;           /* (b) */
    float* logprob;           /* (b) */
    float* finite;            /* (b) */
    void* workspace;          /* speechssm_sample_workspace_bytes: of one row */
    int64_t workspace_bytes;
} speechssm_sample;

SPEECHSSM_EXPORT int64_t speechssm_sample_workspace_bytes(int32_t vocab);
SPEECHSSM_EXPORT int32_t speechssm_sample_host(const speechssm_sample* call);

#ifdef __cplusplus
}
#endif
#endif

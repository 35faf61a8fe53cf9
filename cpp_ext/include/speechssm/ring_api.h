/* The C interface of the attention ring; the rules of rglru_api.h hold here too.
 *
 * Axis letters: b rows, t tokens, h query heads, g key/value heads, k head dim, w attention window.
 */
#ifndef SPEECHSSM_RING_API_H
#define SPEECHSSM_RING_API_H

#include "speechssm/rglru_api.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SPEECHSSM_I8 = 3 }; /* only as ring_dtype */
enum { SPEECHSSM_RING_HEAD_DIM = 512 }; /* largest k: what a launcher keeps on its stack */

/* Vectors of token t and row b start at (t * token_stride + b * row_stride) times their length, which is
 * h*k for q and y and g*k for k and v. q is scaled and rotated already, k rotated.
 *
 * Row b uses ring slots[b] (b itself when slots is NULL) of key_in and value_in, each (slot, w, g, k), and of
 * the outputs, which may be the same memory. Two rows of one call must not name one slot. With the four
 * output pointers NULL nothing is appended: then tokens must be 1. A row runs lengths[b] tokens (all when
 * NULL); an inactive row, a length below 1, a position below 0 or a slot outside [0, slot_count) runs none:
 * its y is 0, its check 0, and its ring (where the slot exists) is copied bit for bit, or left alone where
 * output and input are one. y is 0 at padded tokens. Ring slots at or past position are never read.
 *
 * ring_dtype SPEECHSSM_I8 has a float32 scale (slot, w, g) beside each ring; the others have none.
 */
typedef struct speechssm_ring {
    uint64_t struct_bytes; /* sizeof(speechssm_ring) */
    int32_t dtype;         /* of q, k, v and y */
    int32_t ring_dtype;
    int32_t tokens;
    int32_t rows;
    int32_t heads;
    int32_t kv_heads;
    int32_t head_dim;
    int32_t window;
    int32_t slot_count;
    int32_t pieces; /* device only: parts a row's ring is read in, each by a block; above 1 with a workspace */
    int64_t token_stride;
    int64_t row_stride;
    const void* q;
    const void* k;
    const void* v;
    void* y;      /* must not overlap the inputs */
    float* check; /* (b) or NULL: 0, or NaN where a score, key, value or y of the row is not finite */
    const void* key_in;
    const void* value_in;
    void* key_out;
    void* value_out;
    const float* key_scale_in;
    const float* value_scale_in;
    float* key_scale_out;
    float* value_scale_out;
    const int64_t* position; /* (b) of the first token */
    const int64_t* lengths;  /* (b) or NULL */
    const uint8_t* active;   /* (b) or NULL */
    const int32_t* slots;    /* (b) or NULL */
    void* workspace;         /* device, several pieces only: speechssm_ring_workspace_bytes */
    int64_t workspace_bytes;
} speechssm_ring;

/* Hosts. version 1: vectorised by the best instruction set found, all of which give the same bits, as do
 * a chunk and its tokens one by one. version 2: the plain reference, head by head in the order of the
 * equations. */
SPEECHSSM_EXPORT int32_t speechssm_ring_host(const speechssm_ring* call, int32_t version);

/* Pieces in which few rows fill a device and many lose little: of 128 slots, 64 at most. */
SPEECHSSM_EXPORT int32_t speechssm_ring_pieces(int32_t window);

/* Bytes of workspace that a device launch in `pieces` needs. */
SPEECHSSM_EXPORT int64_t speechssm_ring_workspace_bytes(int32_t rows, int32_t heads, int32_t head_dim, int32_t pieces);

#ifdef __cplusplus
}
#endif
#endif

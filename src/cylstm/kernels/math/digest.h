/* A digest of memory, to see whether weights that anybody may write to have changed.
 *
 * The sum of wyhash (Wang Yi, public domain): words of 64 bits, two by two, multiplied to 128 bits,
 * whose halves are combined. Not against adversaries, who can make two arrays of one digest;
 * otherwise the probability of that is about 2**-64. */
#ifndef CYLSTM_DIGEST_H
#define CYLSTM_DIGEST_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DIGEST_LANES 8  /* side by side in the processor: one alone waits for its products */

static inline uint64_t digest_mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t digest_word(const char *at, int i)
{
    uint64_t word;
    memcpy(&word, at + 8 * i, sizeof word);
    return word;
}

static inline void digest_block(uint64_t *lane, const char *at)
{
    int i;
#pragma GCC unroll 8
    for (i = 0; i < DIGEST_LANES; i++)
        lane[i] = digest_mix(digest_word(at, 2 * i) ^ UINT64_C(0x2d358dccaa6c78a5),
                             digest_word(at, 2 * i + 1) ^ lane[i]);
}

/* Of `size` bytes, going on from the digest of others. */
static uint64_t digest(const char *at, size_t size, uint64_t before)
{
    char rest[16 * DIGEST_LANES] = {0};
    uint64_t lane[DIGEST_LANES], found = before ^ size;
    size_t left = size;
    int i;
    for (i = 0; i < DIGEST_LANES; i++)  /* apart, so that it matters where words are */
        lane[i] = digest_mix(before + i, UINT64_C(0x8bb84b93962eacc9));
    for (; left >= sizeof rest; left -= sizeof rest, at += sizeof rest)
        digest_block(lane, at);
    memcpy(rest, at, left);
    digest_block(lane, rest);
    for (i = 0; i < DIGEST_LANES; i++)
        found = digest_mix(lane[i] ^ UINT64_C(0x4b33a62ed433d4a3), found);
    return found;
}

#endif

/* A training step allocates and frees megabytes, and new pages cost some ten percent of it, so freed
 * blocks wait for the next call, a bounded amount of them, the newest; large ones lie on huge pages
 * where the system has them. A lock that is taken is not waited for. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "memory.h"
#ifdef CYLSTM_EXACT_MEMORY
void *allocate(size_t *size) {
    void *found = NULL;
    if (posix_memalign(&found, 64, *size)) return NULL;
    return memset(found, 0xff, *size);
}
void release(void *block, size_t size) {
    memset(block, 0xff, size);
    __asm__ volatile("" : : "r"(block) : "memory"); /* or the compiler drops what is not read */
    free(block);
}
void forget_kept_blocks(void) {}
#else
enum { KEPT_BLOCKS = 16, KEPT_BYTES = 64 << 20, KEPT_LEAST = 16 << 10 };
typedef struct {
    void *block;        /* NULL: an empty place */
    size_t size;
    uint64_t number;    /* the older, the smaller */
} Kept;
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static Kept kept[KEPT_BLOCKS];
static size_t kept_bytes = 0;

/* Another thread may have held the lock at the fork, in the middle of a change. */
void forget_kept_blocks(void) {
    memset(kept, 0, sizeof kept);
    kept_bytes = 0;
    pthread_mutex_init(&kept_lock, NULL);
}

void *allocate(size_t *size) {
    const size_t huge = (size_t)2 << 20;
    void *found = NULL;
    if (*size >= KEPT_LEAST && pthread_mutex_trylock(&kept_lock) == 0) {
        for (int i = 0; i < KEPT_BLOCKS && !found; i++) {
            if (!kept[i].block || kept[i].size < *size || kept[i].size / 2 > *size) continue;
            found = kept[i].block;
            *size = kept[i].size;
            kept_bytes -= *size;
            kept[i].block = NULL;
        }
        pthread_mutex_unlock(&kept_lock);
    }
    if (found || *size < 2 * huge) return found ? found : aligned_alloc(64, *size);
    *size = (*size + huge - 1) & ~(huge - 1);
    found = aligned_alloc(huge, *size);
#ifdef MADV_HUGEPAGE
    if (found) (void)madvise(found, *size, MADV_HUGEPAGE);
#endif
    return found;
}

/* The place that is empty, or whose block has waited longest. */
static Kept *next_place(int full) {
    Kept *best = NULL;
    for (int i = 0; i < KEPT_BLOCKS; i++) {
        if (!kept[i].block && !full) return &kept[i];
        if (kept[i].block && (!best || kept[i].number < best->number)) best = &kept[i];
    }
    return best;
}

void release(void *block, size_t size) {
    static uint64_t number = 0;
    void *unwanted[KEPT_BLOCKS + 1] = {block};
    int n = 1;
    if (size >= KEPT_LEAST && size <= KEPT_BYTES / 2 && pthread_mutex_trylock(&kept_lock) == 0) {
        n = 0;
        for (Kept *old; kept_bytes + size > KEPT_BYTES && (old = next_place(1)); old->block = NULL) {
            unwanted[n++] = old->block;
            kept_bytes -= old->size;
        }
        Kept *place = next_place(0);
        if (place->block) {
            unwanted[n++] = place->block;
            kept_bytes -= place->size;
        }
        *place = (Kept){block, size, ++number};
        kept_bytes += size;
        pthread_mutex_unlock(&kept_lock);
    }
    while (n > 0) free(unwanted[--n]);
}
#endif

/* Memory of calls, in cache lines of its own.
 *
 * CYLSTM_EXACT_MEMORY is a test build in which nothing is kept, every piece is an allocation of its
 * own size, and memory is NaN before its first and after its last use. */
#ifndef CYLSTM_MEMORY_H
#define CYLSTM_MEMORY_H

#include <stddef.h>

#ifdef CYLSTM_EXACT_MEMORY
enum { EXACT_MEMORY = 1 };
#else
enum { EXACT_MEMORY = 0 };
#endif

/* At least *size bytes, or NULL; *size becomes what release() must be told. */
void *allocate(size_t *size);
void release(void *block, size_t size);
/* For a forked child. */
void forget_kept_blocks(void);

#endif

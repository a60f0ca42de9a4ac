/* A test build (CYLSTM_CHECKS=chaos) in which every hand-over between threads can be delayed, and
 * is counted.
 *
 * HANDOVER(point) does nothing in other builds. In this one a seed decides, for each thread and each
 * time that it comes to a point, whether it goes on at once, lets others run, or stays there for a
 * while: short against a leader's patience, or long, or long against a whole call. The same seed
 * makes the same decisions.
 */
#ifndef CYLSTM_CHAOS_H
#define CYLSTM_CHAOS_H

#ifdef CYLSTM_CHAOS
#include <stdint.h>

#define CHAOS_ALL(X)                                                                              \
    X(TAKE) X(SLEEP) X(ENTER) X(LEAVE) X(LEFT) X(POST) X(CANCEL) X(CANCELLED) X(ASSEMBLE)         \
    X(ABANDON) X(REAP) X(REAPED) X(ARRIVE) X(GIVE_UP) X(GIVEN_UP) X(MET) X(CLAIM) X(LEAVE_PIECE)      \
    X(PAUSE) X(ALONE)
#define CHAOS_ENUM(point) CHAOS_##point,
enum { CHAOS_ALL(CHAOS_ENUM) CHAOS_POINTS };
enum { HAS_CHAOS = 1 };

void chaos_handover(int point);
void chaos(uint64_t seed);
const char *chaos_name(int point);
long chaos_count(int point);
#define HANDOVER(point) chaos_handover(CHAOS_##point)
#else
enum { HAS_CHAOS = 0, CHAOS_POINTS = 0 };
static inline void chaos(unsigned long seed) { (void)seed; }
static inline const char *chaos_name(int point) { (void)point; return ""; }
static inline long chaos_count(int point) { (void)point; return 0; }
#define HANDOVER(point) ((void)0)
#endif

#endif

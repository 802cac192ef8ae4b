/* Networks of atoms, pairs and directed edges: atom energies, forces and virial of one system.
 *
 * A network is a list of instructions (plan.py makes it) that work on buffers with a row for every
 * atom, pair or edge; the list is gone through once forwards, for the energies, and once backwards,
 * for their gradient. Each instruction knows its own gradient. Compiled once for float and once for
 * double (REAL), for all architectures; see build.py.
 */
#include <pthread.h>
#include <stdlib.h>

#include "edge_geometry.h"
#include "edge_layers.h"
#include "edge_network.h"
#include "edge_rows.h"
#include "edge_tables.h"
#include "edge_triplets.h"

/* In the order of OPERATIONS in plan.py. */
enum {
    ELEMENTS, RADIAL, DENSE, JOIN, SUM, BY_PAIR, COLLECT, COUNT, SCALE, TRIPLETS_OF_SOURCE,
    TRIPLETS_OF_TARGET, GATE, NORM, CONTINUOUS, HARMONIC, ENERGY
};

integer size_of_step(void) { return (integer)sizeof(step); }
integer size_of_pair(void) { return (integer)sizeof(edge_pair); }
integer size_of_call(void) { return (integer)sizeof(evaluation); }
integer width_of_vector(void) { return WIDTH; }

/* -------- the list of instructions */

static void rows_forwards(const evaluation *c, integer P, const step *s, integer begin, integer end)
{
    switch (s->code) {
    case DENSE: dense(c, s, begin, end); break;
    case JOIN: join(c, P, s, begin, end); break;
    case SUM: sum(c, P, s, begin, end); break;
    case BY_PAIR: by_pair(c, P, s, begin, end); break;
    case COLLECT: collect(c, P, s, begin, end); break;
    }
}

static void rows_backwards(const evaluation *c, integer P, const step *s, integer begin,
                           integer end)
{
    switch (s->code) {
    case DENSE: dense_back(c, s, begin, end); break;
    case JOIN: join_back(c, P, s, begin, end); break;
    case SUM: sum_back(c, P, s, begin, end); break;
    case BY_PAIR: by_pair_back(c, P, s, begin, end); break;
    case COLLECT: collect_back(c, P, s, begin, end); break;
    }
}

static void forwards(const evaluation *c, integer P, const step *s)
{
    switch (s->code) {
    case ELEMENTS: elements(c, s); break;
    case RADIAL: radial(c, P, s); break;
    case COUNT: count(c, P, s); break;
    case SCALE: scale_rows(c, P, s); break;
    case TRIPLETS_OF_SOURCE: triplets_of_source(c, P, s); break;
    case TRIPLETS_OF_TARGET: triplets_of_target(c, P, s); break;
    case GATE: gate(c, P, s); break;
    case NORM: norm(c, P, s); break;
    case CONTINUOUS: continuous(c, P, s); break;
    case HARMONIC: harmonic(c, P, s, NULL); break;
    case ENERGY: energy(c, s); break;
    }
}

static void backwards(const evaluation *c, integer P, const step *s)
{
    switch (s->code) {
    case RADIAL: radial_back(c, P, s); break;
    case COUNT: count_back(c, P, s); break;
    case SCALE: scale_rows_back(c, P, s); break;
    case TRIPLETS_OF_SOURCE: triplets_of_source_back(c, P, s); break;
    case TRIPLETS_OF_TARGET: triplets_of_target_back(c, P, s); break;
    case GATE: gate_back(c, P, s); break;
    case NORM: norm_back(c, P, s); break;
    case CONTINUOUS: continuous_back(c, P, s); break;
    case HARMONIC: harmonic(c, P, s, SLOT(s->gdst)); break;
    case ENERGY: energy_back(c, s); break;
    }
}

/* Instructions first ... last of the list, a group, go through rows of this kind: a few rows at
 * a time through all of them, so that what one writes is still in the cache when the next reads it.
 * Backwards: from last to first, without those that nobody has handed a gradient. */
static void run_rows(const evaluation *c, integer P, integer kind, integer first, integer last,
                     int back)
{
    const integer n = kind ? kind * P : c->atoms;
    integer begin = 0;
    do { /* also without rows: what is summed up has to be cleared */
        const integer end = begin + CHUNK < n ? begin + CHUNK : n;
        if (back) {
            for (integer k = last; k >= first; k--)
                if (c->program[k].gdst >= 0)
                    rows_backwards(c, P, c->program + k, begin, end);
        } else {
            for (integer k = first; k <= last; k++)
                rows_forwards(c, P, c->program + k, begin, end);
        }
        begin = end;
    } while (begin < n);
}

/* The same by several threads, one instruction after the other. Those that are nearly all of the
 * work touch no rows but their own; the others are left to one thread. Every row is computed as by
 * run_rows(), so that results do not depend on the number of threads. */
static void run_rows_in_threads(const evaluation *c, integer P, integer kind, integer first,
                                integer last, int back)
{
    const integer n = kind ? kind * P : c->atoms;
    for (integer q = first; q <= last; q++) {
        const integer k = back ? last - (q - first) : q;
        const step *s = c->program + k;
        if (s->code != DENSE && s->code != SUM && (back || s->code != BY_PAIR)) {
            run_rows(c, P, kind, k, k, back);
            continue;
        }
        if (back && s->gdst < 0)
            continue;
#ifdef _OPENMP
#pragma omp parallel num_threads((int)c->threads)
#endif
        {
            evaluation own = *c;
#ifdef _OPENMP
            own.scratch += omp_get_thread_num() * c->parts[2];
#pragma omp for schedule(static)
#endif
            for (integer begin = 0; begin < n; begin += CHUNK) {
                const integer end = begin + CHUNK < n ? begin + CHUNK : n;
                if (back)
                    rows_backwards(&own, P, s, begin, end);
                else
                    rows_forwards(&own, P, s, begin, end);
            }
        }
    }
}

static void run(const evaluation *c, integer P, int back)
{
    const integer way = back ? -1 : 1;
    for (integer k = back ? c->steps - 1 : 0; k >= 0 && k < c->steps;) {
        const step *s = c->program + k;
        integer to = k;
        while (s->group >= 0 && to + way >= 0 && to + way < c->steps &&
               c->program[to + way].group == s->group)
            to += way;
        if (s->group >= 0)
            (c->threads > 1 ? run_rows_in_threads : run_rows)(c, P, s->rows, back ? to : k,
                                                              back ? k : to, back);
        else if (!back)
            forwards(c, P, s);
        else if (s->gdst >= 0 || s->code == ENERGY)
            backwards(c, P, s);
        k = to + way;
    }
}

/* Room that a thread keeps from call to call: for many small systems in turns, one piece of memory
 * that stays in the cache is faster than one for each. */
static pthread_key_t room_key;
static pthread_once_t room_once = PTHREAD_ONCE_INIT;
static void make_room_key(void) { pthread_key_create(&room_key, free); }

static REAL *room_of_thread(integer count)
{
    pthread_once(&room_once, make_room_key);
    integer *held = pthread_getspecific(room_key); /* its size, and from 64 bytes on the room */
    if (!held || *held < count) {
        free(held);
        held = NULL;
        if (posix_memalign((void **)&held, 64, 64 + (size_t)count * sizeof(REAL)))
            held = NULL;
        pthread_setspecific(room_key, held);
        if (!held)
            return NULL;
        *held = count;
    }
    return (REAL *)((char *)held + 64);
}

/* Energies, forces and virial; NaN if there is no memory. */
void edge_network(const evaluation *call)
{
    evaluation here = *call, *c = &here;
    const integer P = find_pairs(c);
    const integer count = c->parts[0] + 2 * c->parts[1] + c->threads * c->parts[2];
    REAL *room = c->room ? c->room : room_of_thread(count);
    if (!room) {
        for (integer a = 0; a < c->atoms; a++)
            c->energy[a] = c->force[3 * a] = c->force[3 * a + 1] = c->force[3 * a + 2] = NAN;
        return;
    }
    c->angular = room + c->parts[0];
    c->angular_gradient = c->angular + c->parts[1];
    c->scratch = c->angular_gradient + c->parts[1];
    for (integer k = 0; k < c->slots; k++) {
        c->base[k] = room;
        room += padded(rows_of(c, P, k) * c->layout[2 * k + 1]);
    }
    angles(c, P);
    memset(c->energy, 0, (size_t)c->atoms * sizeof(double));
    run(c, P, 0);
    run(c, P, 1);
    turn_back(c, P);
    gather_forces(c, P);
}

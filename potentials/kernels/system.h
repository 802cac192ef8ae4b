/* One system that a kernel evaluates: what describes it, and how threads share it out.
 *
 * Threads take rows of atoms and, apart from that, stretches of the list of pairs. Each adds what its
 * pairs send into an array of its own; these are summed in a fixed order, so that a given number of
 * threads gives the same result every time.
 */
#ifndef DCASE_SYSTEM_H
#define DCASE_SYSTEM_H

#include "schnet_common.h"

#ifdef _OPENMP
#define BARRIER _Pragma("omp barrier")
#else
#define BARRIER
#endif

/* The same fields as in compiled.py. */
typedef struct {
    integer atoms, listed;           /* pairs listed: a half list */
    integer threads, intervals;      /* of the table of filters; 0: there is none */
    double cutoff, spacing;          /* A; of the table's knots, or where these are uneven: */
    const double *knots;             /* A, [intervals + 1], and */
    const integer *begins;           /* the interval that each of as many even bins begins in */
    const double *positions;         /* A, [atoms, 3] */
    const integer *atom_of;          /* rows of features are atoms in an order that keeps neighbours
                                      * close together in memory, [atoms]; the list is of rows */
    const integer *list;             /* [2, listed] */
    const double *offsets;           /* cell vectors between the atoms of a pair, A, or NULL */
    const integer *species;          /* [atoms] */
    char *pairs;                     /* [listed] of the kernel's kind of pair, which begins with one */
    double *sums;                    /* [threads, 3 atoms + 9] */
    integer *stretch;                /* [threads, 3]: pairs in the cutoff, first and last atom */
    double *energy, *force, *virial; /* of the network: [atoms], [atoms, 3], dE/d strain [3, 3] */
    integer *neighbours;             /* within the cutoff, [atoms] */
    double *closest; /* shortest distance of a pair, A, of each thread and then of all: [threads] */
} atomic_system;

/* Rows of a thread, whole tiles of the matrix product; the first, and how many. */
static integer rows_of(const atomic_system *c, integer thread, integer *count)
{
    const integer n = c->atoms, tiles = (n + ROWS - 1) / ROWS;
    const integer first = tiles * thread / c->threads * ROWS;
    integer end = tiles * (thread + 1) / c->threads * ROWS;
    end = end < n ? end : n;
    *count = end > first ? end - first : 0;
    return first;
}

/* As locate(), between uneven knots: powers of the distance from the knot before, 4 rows of each
 * interval. Before the first knot its cubic goes on. */
static void locate_piece(pair *p, const atomic_system *c)
{
    const integer last = c->intervals - 1;
    const double bin = (p->d - c->knots[0]) / c->spacing;
    integer at = c->begins[bin > 0 ? (bin < (double)last ? (integer)bin : last) : 0];
    while (at < last && p->d >= c->knots[at + 1])
        at++;
    const double x = p->d - c->knots[at];
    const double value[4] = {1, x, x * x, x * x * x}, slope[4] = {0, 1, 2 * x, 3 * x * x};
    p->row = 4 * at;
    for (int k = 0; k < 4; k++) {
        p->value[k] = (REAL)value[k];
        p->slope[k] = (REAL)slope[k];
    }
}

/* Geometry of the pairs of a thread's stretch of the list that are within the cutoff, to its
 * beginning; size: of a pair, in bytes. Returns the beginning. All threads have to have zeroed
 * their rows of neighbours. */
static integer measure(const atomic_system *c, integer thread, size_t size)
{
    const double limit = c->cutoff * c->cutoff;
    const integer begin = c->listed * thread / c->threads,
                  end = c->listed * (thread + 1) / c->threads;
    integer count = 0, first = c->atoms, last = -1;
    double closest = INFINITY;
    for (integer q = begin; q < end; q++) {
        pair *p = (pair *)(c->pairs + (size_t)(begin + count) * size);
        const integer i = c->list[q], j = c->list[c->listed + q], a = c->atom_of[i],
                      b = c->atom_of[j];
        p->i = i;
        p->j = j;
        double square = 0;
        for (int e = 0; e < 3; e++) {
            p->r[e] = c->positions[3 * b + e] - c->positions[3 * a + e];
            if (c->offsets)
                p->r[e] += c->offsets[3 * q + e];
            square += p->r[e] * p->r[e];
        }
        if (!(square < limit))
            continue;
        p->d = sqrt(square);
        closest = p->d < closest ? p->d : closest;
        p->pull = 0;
        if (c->knots)
            locate_piece(p, c);
        else if (c->intervals)
            locate(p, c->intervals, c->spacing);
#ifdef _OPENMP
#pragma omp atomic
#endif
        c->neighbours[a]++;
#ifdef _OPENMP
#pragma omp atomic
#endif
        c->neighbours[b]++;
        first = i < first ? i : first;
        first = j < first ? j : first;
        last = i > last ? i : last;
        last = j > last ? j : last;
        count++;
    }
    integer *stretch = c->stretch + 3 * thread;
    stretch[0] = count;
    stretch[1] = first;
    stretch[2] = last;
    c->closest[thread] = closest;
    return begin;
}

/* Of what threads send, [threads, atoms, width]: zero the rows where the sums go, and those that
 * this thread's pairs send to. */
static void clear(const atomic_system *c, REAL *sent, integer width, integer thread, integer begin,
                  integer end)
{
    const integer from = c->stretch[3 * thread + 1], to = c->stretch[3 * thread + 2] + 1;
    if (begin < end)
        memset(sent + begin * width, 0, (size_t)((end - begin) * width) * sizeof(REAL));
    if (thread > 0 && from < to)
        memset(sent + (thread * c->atoms + from) * width, 0,
               (size_t)((to - from) * width) * sizeof(REAL));
}

/* The first thread's rows += what the other threads' pairs have sent, in the order of the threads */
static void gather(const atomic_system *c, REAL *sent, integer width, integer begin, integer end)
{
    for (integer t = 1; t < c->threads; t++) {
        const integer from = c->stretch[3 * t + 1] > begin ? c->stretch[3 * t + 1] : begin,
                      to = c->stretch[3 * t + 2] + 1 < end ? c->stretch[3 * t + 2] + 1 : end;
        const REAL *theirs = sent + t * c->atoms * width;
        for (integer q = from * width; q < to * width; q++)
            sent[q] += theirs[q];
    }
}

/* Forces and virial from the pairs, by gradient: dE/dr of a pair */
static void pull_atoms(const atomic_system *c, integer thread, integer begin, size_t size,
                       void (*gradient)(const pair *, double *))
{
    const integer n = c->atoms, count = c->stretch[3 * thread];
    double *const force = c->sums + thread * (3 * n + 9), *const virial = force + 3 * n;
    memset(force, 0, (size_t)(3 * n + 9) * sizeof(double));
    for (integer q = 0; q < count; q++) {
        const pair *p = (const pair *)(c->pairs + (size_t)(begin + q) * size);
        double pull[3];
        gradient(p, pull);
        for (int e = 0; e < 3; e++) {
            force[3 * p->i + e] += pull[e];
            force[3 * p->j + e] -= pull[e];
            for (int s = 0; s < 3; s++)
                virial[3 * e + s] += pull[e] * p->r[s];
        }
    }
    BARRIER
    integer rows;
    const integer first = rows_of(c, thread, &rows);
    for (integer a = first; a < first + rows; a++)
        for (int e = 0; e < 3; e++) {
            double sum = 0;
            for (integer t = 0; t < c->threads; t++)
                sum += c->sums[t * (3 * n + 9) + 3 * a + e];
            c->force[3 * c->atom_of[a] + e] = sum;
        }
    if (thread == 0) {
        for (integer t = 1; t < c->threads; t++)
            *c->closest = c->closest[t] < *c->closest ? c->closest[t] : *c->closest;
        for (integer q = 0; q < 9; q++) {
            c->virial[q] = 0;
            for (integer t = 0; t < c->threads; t++)
                c->virial[q] += c->sums[t * (3 * n + 9) + 3 * n + q];
        }
    }
}

/* evaluate(call, thread) by as many threads; 0 if there are fewer, and nothing has been done: they
 * would leave stretches out. */
static int by_threads(const void *call, integer threads, void (*evaluate)(const void *, integer))
{
    int got = 0;
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads((int)threads)
        {
#pragma omp single
            got = omp_get_num_threads();
            if (got == (int)threads)
                evaluate(call, omp_get_thread_num());
        }
        return got == (int)threads;
    }
#endif
    (void)got;
    if (threads > 1)
        return 0;
    evaluate(call, 0);
    return 1;
}

#endif

/* What all parts of edge_network.c share: its data, matrix products, activations of rows. */
#ifndef DCASE_EDGE_NETWORK_H
#define DCASE_EDGE_NETWORK_H

#include "schnet_common.h"

/* An activation as it is applied to rows of m numbers; the same fields as in plan.py.
 *
 *     y = gain (phi(x) - offset)                                   sized = 0
 *     y = gain r (phi(x / r + 1) - offset),  r^2 = base + part mean x^2       1
 */
typedef struct {
    integer kind; /* as in schnet_common.h, or -1 for the identity */
    const curve *bend;
    integer sized;
    double gain, offset, base, part;
} bending;

/* One instruction; the same fields as in plan.py. Buffers are numbers of slots, -1 for none. */
typedef struct {
    integer code, k, m;  /* k: input width, m: output width */
    integer group, rows; /* of instructions done together row by row, and kind of the rows; -1 */
    integer dst, src[3];
    integer aux[3];           /* kept for the way back */
    integer gdst, gsrc[3];    /* gradients; -1: not wanted */
    integer add[3];           /* the gradient of that source is added to, not set */
    integer number[3];        /* see each instruction */
    const REAL *w[3];
    const double *table;
    double scale;
    bending act;
} step;

typedef struct {
    integer i, j, row;
    double value[4], slope[4]; /* weights of four rows of a table, and their derivatives */
    double r[3], u[3], d;      /* x_j - x_i, over its length, its length: A */
    double pull, turn[3];      /* dE/dd, dE/du */
} edge_pair;

/* Everything of one evaluation; the same fields as in edge_network.py. */
typedef struct {
    integer atoms, listed, steps, slots, intervals, threads;
    integer orders; /* of P_l(cos angle), or 0 */
    double cutoff, spacing;
    const double *positions, *offsets; /* A, [atoms, 3]; [listed, 3] or NULL */
    const integer *list, *species;     /* [2, listed]; [atoms] */
    const step *program;
    const integer *layout; /* [slots, 2]: 0 atoms, 1 pairs, 2 edges; width */
    const double *norms;   /* of P_l, [orders] */
    REAL **base;           /* [slots] */
    integer parts[3];      /* REALs: of all slots, of angular, of scratch for one thread */
    REAL *room;            /* [parts[0] + 2 parts[1] + threads parts[2]]; NULL: the thread's own */
    REAL *angular, *angular_gradient, *scratch; /* in that room; see angles() */
    integer *first, *into, *place;    /* [atoms + 1]; [edges]; [atoms + 1] */
    edge_pair *pairs;                 /* [listed] */
    double *energy, *force, *virial;
    integer *neighbours;
    double *closest; /* shortest distance of a pair, A, [1] */
} evaluation;

/* Rows of a matrix that are worked on at a time, so that they stay in the cache. */
#define CHUNK 24

/* rows x vectors of C = (add ? C : 0) + bias + A B, inlined for each number of both. */
static inline __attribute__((always_inline)) void
tile(int rows, int vectors, integer k, const REAL *restrict A, integer row, integer column,
     const REAL *restrict B, integer ldb, const REAL *restrict bias, REAL *restrict C, integer ldc,
     int add)
{
    vector sum[ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++)
            sum[r][c] = bias ? *(const vector *)(bias + c * WIDTH) : (vector){0};
    for (integer q = 0; q < k; q++) {
        vector right[2];
        for (int c = 0; c < vectors; c++)
            right[c] = *(const vector *)(B + q * ldb + c * WIDTH);
        for (int r = 0; r < rows; r++) {
            const REAL a = A[r * row + q * column];
            for (int c = 0; c < vectors; c++)
                sum[r][c] += a * right[c];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++) {
            vector *target = (vector *)(C + r * ldc + c * WIDTH);
            *target = sum[r][c] + (add ? *target : (vector){0});
        }
}

static void panel(int vectors, integer n, integer k, const REAL *A, integer row, integer column,
                  const REAL *B, integer ldb, const REAL *bias, REAL *C, integer ldc, int add)
{
#define CASE(rows, vectors)                                                                        \
    case 2 * rows + vectors - 1:                                                                   \
        tile(rows, vectors, k, A + i * row, row, column, B, ldb, bias, C + i * ldc, ldc, add);     \
        break;
    for (integer i = 0; i < n; i += ROWS)
        switch (2 * (n - i < ROWS ? n - i : ROWS) + vectors - 1) {
            CASE(6, 1) CASE(5, 1) CASE(4, 1) CASE(3, 1) CASE(2, 1) CASE(1, 1)
            CASE(6, 2) CASE(5, 2) CASE(4, 2) CASE(3, 2) CASE(2, 2) CASE(1, 2)
        }
#undef CASE
}

/* C[n, m] = (add ? C : 0) + A[n, k] B[k, m], m a multiple of WIDTH; element (i, q) of A at
 * i row + q column, rows of B and C m apart */
static void matrix(integer n, integer k, integer m, const REAL *A, integer row, integer column,
                   const REAL *B, REAL *C, int add)
{
    integer j = 0;
    for (; j + TILE <= m; j += TILE)
        panel(2, n, k, A, row, column, B + j, m, NULL, C + j, m, add);
    if (j < m)
        panel(1, n, k, A, row, column, B + j, m, NULL, C + j, m, add);
}

/* C[n, m] = (add ? C : 0) + bias[m] + A[n, k] B[k, m] for at most CHUNK rows; rows of A and C lda
 * and ldc apart; B and bias in panels of TILE columns, the last one filled up with zeros */
static void packed(integer n, integer k, integer m, const REAL *A, integer lda, const REAL *B,
                   const REAL *bias, REAL *C, integer ldc, int add)
{
    for (integer j = 0; j < m; j += TILE, B += k * TILE) {
        const REAL *const b = bias ? bias + j : NULL;
        if (j + TILE <= m) {
            panel(2, n, k, A, lda, 1, B, TILE, b, C + j, ldc, add);
            continue;
        }
        REAL rest[CHUNK * TILE];
        panel(m - j > WIDTH ? 2 : 1, n, k, A, lda, 1, B, TILE, b, rest, TILE, 0);
        for (integer r = 0; r < n; r++)
            for (integer c = 0; c < m - j; c++)
                C[r * ldc + j + c] = (add ? C[r * ldc + j + c] : 0) + rest[r * TILE + c];
    }
}

/* y = act(x) for rows of x, which is overwritten, with what unbend() needs */
static void bend_rows(const bending *f, integer rows, integer m, REAL *restrict x,
                      REAL *restrict y, REAL *restrict slope, REAL *restrict lift,
                      REAL *restrict share)
{
    if (f->kind < 0) {
        memcpy(y, x, (size_t)(rows * m) * sizeof(REAL));
        return;
    }
    const REAL gain = (REAL)f->gain, offset = (REAL)f->offset;
    if (!f->sized) {
        activate((int)f->kind, f->bend, rows * m, x, y, slope, NULL);
        if (gain != 1 || offset != 0)
            for (integer q = 0; q < rows * m; q++) {
                y[q] = gain * (y[q] - offset);
                slope[q] *= gain;
            }
        return;
    }
    REAL size[CHUNK];
    for (integer i = 0; i < rows; i++) {
        REAL squares = 0;
        for (integer q = i * m; q < (i + 1) * m; q++)
            squares += x[q] * x[q];
        size[i] = (REAL)sqrt(f->base + f->part * (double)squares / (double)m);
        const REAL inverse = 1 / size[i], rate = (REAL)(f->part / (double)m) * inverse;
        for (integer q = i * m; q < (i + 1) * m; q++) {
            share[q] = rate * x[q]; /* dr/dx */
            x[q] = x[q] * inverse + 1;
        }
    }
    activate((int)f->kind, f->bend, rows * m, x, y, slope, NULL);
    for (integer i = 0; i < rows; i++)
        for (integer q = i * m; q < (i + 1) * m; q++) {
            const REAL raised = y[q] - offset;
            lift[q] = gain * (raised - (x[q] - 1) * slope[q]); /* dy/dr */
            y[q] = gain * size[i] * raised;
            slope[q] *= gain;
        }
}

/* g: from dE/dy to dE/dx */
static void unbend_rows(const bending *f, integer rows, integer m, REAL *restrict g,
                        const REAL *restrict slope, const REAL *restrict lift,
                        const REAL *restrict share)
{
    if (f->kind < 0)
        return;
    if (!f->sized) {
        for (integer q = 0; q < rows * m; q++)
            g[q] *= slope[q];
        return;
    }
    for (integer i = 0; i < rows; i++) {
        REAL sum = 0;
        for (integer q = i * m; q < (i + 1) * m; q++)
            sum += g[q] * lift[q];
        for (integer q = i * m; q < (i + 1) * m; q++)
            g[q] = g[q] * slope[q] + sum * share[q];
    }
}

static integer padded(integer width) { return (width + WIDTH - 1) / WIDTH * WIDTH; }

#define SLOT(number) ((number) < 0 ? NULL : c->base[number])
#define TARGET(e) ((e) < P ? c->pairs[e].i : c->pairs[(e) - P].j)
#define SOURCE(e) ((e) < P ? c->pairs[e].j : c->pairs[(e) - P].i)
#define PAIR(e) ((e) < P ? (e) : (e) - P)
#define OPPOSITE(e) ((e) < P ? (e) + P : (e) - P)

static integer rows_of(const evaluation *c, integer P, integer slot)
{
    const integer kind = c->layout[2 * slot];
    return kind == 0 ? c->atoms : kind * P;
}

/* The gradient of source k of a step, zero if nothing was written to it yet; NULL: not wanted. For
 * instructions that go row by row: at their first row. */
static REAL *gradient(const evaluation *c, integer P, const step *s, int k, integer begin)
{
    const integer slot = s->gsrc[k];
    REAL *g = SLOT(slot);
    if (g && !s->add[k] && begin == 0)
        memset(g, 0, (size_t)(rows_of(c, P, slot) * c->layout[2 * slot + 1]) * sizeof(REAL));
    return g;
}

/* to += x */
static inline void accumulate(REAL *restrict to, const REAL *restrict x, integer m)
{
    for (integer q = 0; q < m; q++)
        to[q] += x[q];
}

/* dst = act(straight), from row begin on */
static void bend(const evaluation *c, const step *s, integer rows, REAL *straight, integer begin)
{
    const integer at = begin * s->m;
    if (s->act.kind < 0)
        return;
    REAL *lift = SLOT(s->aux[1]), *share = SLOT(s->aux[2]);
    bend_rows(&s->act, rows, s->m, straight, SLOT(s->dst) + at, SLOT(s->aux[0]) + at,
              lift ? lift + at : NULL, share ? share + at : NULL);
}

static void unbend(const evaluation *c, const step *s, integer rows, REAL *g, integer begin)
{
    const integer at = begin * s->m;
    if (s->act.kind < 0)
        return;
    const REAL *lift = SLOT(s->aux[1]), *share = SLOT(s->aux[2]);
    unbend_rows(&s->act, rows, s->m, g, SLOT(s->aux[0]) + at, lift ? lift + at : NULL,
                share ? share + at : NULL);
}

#endif

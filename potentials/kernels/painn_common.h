/* PaiNN's layers, for evaluation and for training; names as in potentials/networks/painn.py.
 *
 * Features of an atom: s [F] and v [3, F], the components of a vector one after the other, so that
 * everything goes through features side by side. What goes from atom to atom is in painn_pairs.h.
 */
#ifndef DCASE_PAINN_COMMON_H
#define DCASE_PAINN_COMMON_H

#include "painn_pairs.h"

/* Of a block, each [in, out] or a bias, and the transposed matrices; WEIGHTS pointers. */
typedef struct {
    const REAL *dense, *dense_bias, *split, *split_bias;                   /* message */
    const REAL *mix, *bend, *bend_bias, *part, *part_bias;                 /* update */
    const REAL *dense_t, *split_t, *mix_t, *bend_t, *part_t;
} block_weights;
#define WEIGHTS 14

static block_weights weights_of(const REAL *const *weights, integer layer)
{
    block_weights w;
    memcpy(&w, weights + 1 + WEIGHTS * layer, sizeof w);
    return w;
}

/* What a block has computed, of all atoms; for training once more behind each for its rate along a
 * direction. */
typedef struct {
    REAL *s;          /* scalar features that come in, [n, F]; of the first block: of elements */
    REAL *z, *z_bent; /* in phi: before the activation, and its slope, [n, F] */
    REAL *phi;        /* [n, 3F]: to s, along u, to v; of the first block: of elements */
    REAL *v;          /* vector features that come in, [n, 3, F]; of the first block there are none */
    REAL *joined;     /* after the message: s, and then |V v|, [n, 2F] */
    REAL *turned;     /* v after the message, [n, 3, F] */
    REAL *mixed;      /* V v and U v, [n, 3, 2F] */
    REAL *dot;        /* <U v, V v>, [n, F] */
    REAL *y, *y_bent; /* as z, in a, [n, F] */
    REAL *a;          /* ss, vv, sv, [n, 3F] */
} block;

#define BLOCK 27 /* numbers of a block, in F for each atom */

static block place_block(REAL *work, integer n, integer F, integer copies)
{
    block b;
    integer used = 0;
#define PLACE(name, width)                                                                         \
    b.name = work + used;                                                                          \
    used += copies * n * (width) * F
    PLACE(s, 1);
    PLACE(z, 1);
    PLACE(z_bent, 1);
    PLACE(phi, 3);
    PLACE(v, 3);
    PLACE(joined, 2);
    PLACE(turned, 3);
    PLACE(mixed, 6);
    PLACE(dot, 1);
    PLACE(y, 1);
    PLACE(y_bent, 1);
    PLACE(a, 3);
#undef PLACE
    return b;
}

/* The activation of a network. */
typedef struct {
    int kind;
    const curve *bend;
} activation;

/* phi of rows of s; room [rows, F] */
static void phi_of(const block *b, const block_weights *w, activation act, integer first,
                   integer rows, integer F, REAL *room)
{
    REAL *z = b->z + first * F;
    product(rows, F, F, b->s + first * F, w->dense, w->dense_bias, z, 0);
    activate(act.kind, act.bend, rows * F, z, room, b->z_bent + first * F, NULL);
    product(rows, F, 3 * F, room, w->split, w->split_bias, b->phi + first * 3 * F, 0);
}

/* gs += the gradient by s, from that by phi (g, [rows, 3F], a row every so many numbers);
 * gz: what comes to the activation, [rows, F]; room [rows, F] */
static void phi_back(const block *b, const block_weights *w, integer first, integer rows,
                     integer F, const REAL *g, integer row, REAL *gs, REAL *gz, REAL *room)
{
    const REAL *bent = b->z_bent + first * F;
    multiply(rows, 3 * F, F, g, row, 1, w->split_t, NULL, gz, 0);
#pragma GCC ivdep
    for (integer q = 0; q < rows * F; q++)
        room[q] = gz[q] * bent[q];
    product(rows, F, F, room, w->dense_t, NULL, gs, 1);
}

/* The update of rows: next_s, and next_v unless it is NULL; room [rows, F] */
static void update_of(const block *b, const block_weights *w, activation act, REAL softening,
                      integer first, integer rows, integer F, REAL *next_s, REAL *next_v,
                      REAL *room)
{
    REAL *restrict joined = b->joined + first * 2 * F, *restrict dot = b->dot + first * F;
    REAL *const mixed = b->mixed + first * 6 * F, *const y = b->y + first * F,
                *const a = b->a + first * 3 * F;
    const REAL *const turned = b->turned + first * 3 * F;
    product(3 * rows, F, 2 * F, turned, w->mix, NULL, mixed, 0);
    for (integer i = 0; i < rows; i++) {
        const REAL *x = mixed + i * 6 * F;
#pragma GCC ivdep
        for (integer f = 0; f < F; f++) {
            const REAL v0 = x[f], v1 = x[2 * F + f], v2 = x[4 * F + f];
            joined[i * 2 * F + F + f] =
                (REAL)sqrt(v0 * v0 + v1 * v1 + v2 * v2 + softening * softening);
            dot[i * F + f] = v0 * x[F + f] + v1 * x[3 * F + f] + v2 * x[5 * F + f];
        }
    }
    product(rows, 2 * F, F, joined, w->bend, w->bend_bias, y, 0);
    activate(act.kind, act.bend, rows * F, y, room, b->y_bent + first * F, NULL);
    product(rows, F, 3 * F, room, w->part, w->part_bias, a, 0);
    for (integer i = 0; i < rows; i++) {
        const REAL *ai = a + i * 3 * F;
        REAL *restrict to = next_s + (first + i) * F;
#pragma GCC ivdep
        for (integer f = 0; f < F; f++)
            to[f] = joined[i * 2 * F + f] + ai[f] + ai[2 * F + f] * dot[i * F + f];
        if (next_v)
            for (int c = 0; c < 3; c++) {
                const REAL *old = turned + (3 * i + c) * F, *u = mixed + (3 * i + c) * 2 * F + F;
                REAL *restrict new = next_v + (3 * (first + i) + c) * F;
#pragma GCC ivdep
                for (integer f = 0; f < F; f++)
                    new[f] = old[f] + ai[F + f] * u[f];
            }
    }
}

/* From the gradients by what goes out of a block's update, gs and gv (vectors: whether there is the
 * latter), those by what goes into it, in their place. gy: what comes to the activation, [rows, F];
 * gj: to joined, [rows, 2F]; room [rows, 6F] */
static void update_back(const block *b, const block_weights *w, integer first, integer rows,
                        integer F, int vectors, REAL *gs, REAL *gv, REAL *gy, REAL *gj, REAL *room)
{
    const REAL *joined = b->joined + first * 2 * F, *dot = b->dot + first * F,
               *mixed = b->mixed + first * 6 * F, *a = b->a + first * 3 * F,
               *bent = b->y_bent + first * F;
    REAL *const ga = room, *const g_bent = ga + rows * 3 * F, *const gm = room; /* in turn */
    for (integer i = 0; i < rows; i++) {
        const REAL *x = mixed + i * 6 * F, *g = gv + i * 3 * F;
        REAL *restrict to = ga + i * 3 * F;
#pragma GCC ivdep
        for (integer f = 0; f < F; f++) {
            const REAL up = gs[i * F + f];
            to[f] = up;
            to[F + f] = vectors ? g[f] * x[F + f] + g[F + f] * x[3 * F + f] +
                                      g[2 * F + f] * x[5 * F + f]
                                : 0;
            to[2 * F + f] = up * dot[i * F + f];
        }
    }
    product(rows, 3 * F, F, ga, w->part_t, NULL, gy, 0);
#pragma GCC ivdep
    for (integer q = 0; q < rows * F; q++)
        g_bent[q] = gy[q] * bent[q];
    product(rows, F, 2 * F, g_bent, w->bend_t, NULL, gj, 0);
    for (integer i = 0; i < rows; i++) {
        const REAL *ai = a + i * 3 * F;
        for (int c = 0; c < 3; c++) {
            const REAL *x = mixed + (3 * i + c) * 2 * F, *g = gv + (3 * i + c) * F;
            REAL *restrict to = gm + (3 * i + c) * 2 * F;
#pragma GCC ivdep
            for (integer f = 0; f < F; f++) {
                const REAL by_dot = gs[i * F + f] * ai[2 * F + f],
                           by_length = gj[i * 2 * F + F + f] / joined[i * 2 * F + F + f];
                to[f] = by_dot * x[F + f] + by_length * x[f];
                to[F + f] = by_dot * x[f] + (vectors ? g[f] * ai[F + f] : 0);
            }
        }
#pragma GCC ivdep
        for (integer f = 0; f < F; f++)
            gs[i * F + f] += gj[i * 2 * F + f];
    }
    product(3 * rows, 2 * F, F, gm, w->mix_t, NULL, gv, vectors);
}

#endif

/* PaiNN's layers, for evaluation and for training; names as in potentials/networks/painn.py.
 *
 * Features of an atom: s [F] and v [3, F], the components of a vector one after the other, so that
 * everything goes through features side by side. The filters of a pair are made on the way, from
 * four rows of the table.
 */
#ifndef DCASE_PAINN_COMMON_H
#define DCASE_PAINN_COMMON_H

#include "schnet_common.h"

/* A pair, the unit vector of r, and of what depends on it: dE/du; and along a direction: du. */
typedef struct {
    pair p;
    REAL u[3], du[3];
    double turn[3];
} ray;

/* When its distance and vector are known. */
static void point(ray *y)
{
    y->p.pull = 0;
    for (int c = 0; c < 3; c++) {
        y->u[c] = (REAL)(y->p.r[c] / y->p.d);
        y->turn[c] = 0;
    }
}

/* dE/dr of a ray from dE/dd and dE/du, with u = r / d */
static void gradient_of_ray(const pair *p, double *to)
{
    const ray *y = (const ray *)p;
    double along = 0;
    for (int c = 0; c < 3; c++)
        along += y->turn[c] * p->r[c];
    for (int c = 0; c < 3; c++)
        to[c] = (p->pull * p->r[c] + y->turn[c] - along * p->r[c] / (p->d * p->d)) / p->d;
}

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
 * room [rows, F] */
static void phi_back(const block *b, const block_weights *w, integer first, integer rows,
                     integer F, const REAL *g, integer row, REAL *gs, REAL *room)
{
    const REAL *bent = b->z_bent + first * F;
    multiply(rows, 3 * F, F, g, row, 1, w->split_t, NULL, room, 0);
#pragma GCC ivdep
    for (integer q = 0; q < rows * F; q++)
        room[q] *= bent[q];
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
 * latter), those by what goes into it, in their place; room [rows, 12 F] */
static void update_back(const block *b, const block_weights *w, integer first, integer rows,
                        integer F, int vectors, REAL *gs, REAL *gv, REAL *room)
{
    const REAL *joined = b->joined + first * 2 * F, *dot = b->dot + first * F,
               *mixed = b->mixed + first * 6 * F, *a = b->a + first * 3 * F,
               *bent = b->y_bent + first * F;
    REAL *const ga = room, *const gy = ga + rows * 3 * F, *const gj = gy + rows * F,
                *const gm = gj + rows * 2 * F;
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
        gy[q] *= bent[q];
    product(rows, F, 2 * F, gy, w->bend_t, NULL, gj, 0);
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

#define MOST 3072 /* filters of a block, 3F, that there is room for */
integer most_features(void) { return MOST / 3; }

/* W and, unless it is NULL, W' of a pair, [width], from the table's columns of a block */
static void filters_at(const pair *p, const REAL *restrict table, integer columns, integer width,
                       REAL *restrict W, REAL *restrict slope)
{
    const REAL *t0 = table + p->row * columns, *t1 = t0 + columns, *t2 = t1 + columns,
               *t3 = t2 + columns;
    const REAL b0 = p->value[0], b1 = p->value[1], b2 = p->value[2], b3 = p->value[3];
    const REAL s0 = p->slope[0], s1 = p->slope[1], s2 = p->slope[2], s3 = p->slope[3];
    if (!slope) {
#pragma GCC ivdep
        for (integer f = 0; f < width; f++)
            W[f] = b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f];
        return;
    }
#pragma GCC ivdep
    for (integer f = 0; f < width; f++) {
        W[f] = b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f];
        slope[f] = s0 * t0[f] + s1 * t1[f] + s2 * t2[f] + s3 * t3[f];
    }
}

/* One direction of a pair: phi and v of the sender, what is added to s and v of the receiver, and
 * the unit vector from the receiver to the sender. v may be NULL: there is none yet. */
static inline __attribute__((always_inline)) void
send_to(integer F, const REAL *restrict W, const REAL u[3], const REAL *restrict phi,
        const REAL *restrict v, int vectors, REAL *restrict to_s, REAL *restrict to_v)
{
    const REAL u0 = u[0], u1 = u[1], u2 = u[2];
#pragma GCC ivdep
    for (integer f = 0; f < F; f++) {
        const REAL along = W[F + f] * phi[F + f];
        to_s[f] += W[f] * phi[f];
        REAL x = along * u0, y = along * u1, z = along * u2;
        if (vectors) {
            const REAL keep = W[2 * F + f] * phi[2 * F + f];
            x += keep * v[f];
            y += keep * v[F + f];
            z += keep * v[2 * F + f];
        }
        to_v[f] += x;
        to_v[F + f] += y;
        to_v[2 * F + f] += z;
    }
}

static void opposite(const REAL u[3], REAL to[3])
{
    for (int c = 0; c < 3; c++)
        to[c] = -u[c];
}

/* Both directions of a pair; row_i, row_j: of phi, the atoms or (first block) their elements. What is
 * added to s and v of the receivers comes in rows of s_row and v_row numbers. */
static void send(const ray *y, integer F, const REAL *W, const REAL *phi, integer row_i,
                 integer row_j, const REAL *v, REAL *to_s, integer s_row, REAL *to_v,
                 integer v_row)
{
    const integer i = y->p.i, j = y->p.j;
    const REAL *from_i = phi + row_i * 3 * F, *from_j = phi + row_j * 3 * F;
    REAL back[3];
    opposite(y->u, back);
    if (v) {
        send_to(F, W, y->u, from_j, v + j * 3 * F, 1, to_s + i * s_row, to_v + i * v_row);
        send_to(F, W, back, from_i, v + i * 3 * F, 1, to_s + j * s_row, to_v + j * v_row);
    } else {
        send_to(F, W, y->u, from_j, NULL, 0, to_s + i * s_row, to_v + i * v_row);
        send_to(F, W, back, from_i, NULL, 0, to_s + j * s_row, to_v + j * v_row);
    }
}

/* Gradients of one direction, from those by s and v of the receiver (gs, gv): by the sender's phi
 * and v, added to, unless there is no v yet, and with it nothing before phi that moves; by the
 * distance, returned, and by u, added to. */
static inline __attribute__((always_inline)) REAL
send_back_to(integer F, const REAL *restrict W, const REAL *restrict slope, const REAL u[3],
             const REAL *restrict phi, const REAL *restrict v, int vectors,
             const REAL *restrict gs, const REAL *restrict gv, REAL *restrict to_phi,
             REAL *restrict to_v, REAL to_u[3])
{
    const REAL u0 = u[0], u1 = u[1], u2 = u[2];
    REAL pull = 0, t0 = 0, t1 = 0, t2 = 0;
#pragma GCC ivdep
    for (integer f = 0; f < F; f++) {
        const REAL x = gv[f], y = gv[F + f], z = gv[2 * F + f];
        const REAL by_along = x * u0 + y * u1 + z * u2, along = W[F + f] * phi[F + f];
        pull += slope[f] * phi[f] * gs[f] + slope[F + f] * phi[F + f] * by_along;
        t0 += along * x;
        t1 += along * y;
        t2 += along * z;
        if (vectors) {
            const REAL by_keep = x * v[f] + y * v[F + f] + z * v[2 * F + f],
                       keep = W[2 * F + f] * phi[2 * F + f];
            pull += slope[2 * F + f] * phi[2 * F + f] * by_keep;
            to_phi[f] += W[f] * gs[f];
            to_phi[F + f] += W[F + f] * by_along;
            to_phi[2 * F + f] += W[2 * F + f] * by_keep;
            to_v[f] += keep * x;
            to_v[F + f] += keep * y;
            to_v[2 * F + f] += keep * z;
        }
    }
    to_u[0] += t0;
    to_u[1] += t1;
    to_u[2] += t2;
    return pull;
}

/* Both directions; to_phi and to_v come in rows of so many numbers */
static void send_back(ray *y, integer F, const REAL *W, const REAL *slope, const REAL *phi,
                      integer row_i, integer row_j, const REAL *v, const REAL *gs,
                      const REAL *gv, REAL *to_phi, REAL *to_v, integer row)
{
    const integer i = y->p.i, j = y->p.j;
    const REAL *from_i = phi + row_i * 3 * F, *from_j = phi + row_j * 3 * F;
    const REAL *gsi = gs + i * F, *gsj = gs + j * F, *gvi = gv + i * 3 * F, *gvj = gv + j * 3 * F;
    REAL back[3], at_i[3] = {0, 0, 0}, at_j[3] = {0, 0, 0}, pull;
    opposite(y->u, back);
    if (v) {
        pull = send_back_to(F, W, slope, y->u, from_j, v + j * 3 * F, 1, gsi, gvi,
                            to_phi + j * row, to_v + j * row, at_i);
        pull += send_back_to(F, W, slope, back, from_i, v + i * 3 * F, 1, gsj, gvj,
                             to_phi + i * row, to_v + i * row, at_j);
    } else {
        pull = send_back_to(F, W, slope, y->u, from_j, NULL, 0, gsi, gvi, NULL, NULL, at_i);
        pull += send_back_to(F, W, slope, back, from_i, NULL, 0, gsj, gvj, NULL, NULL, at_j);
    }
    y->p.pull += (double)pull;
    for (int c = 0; c < 3; c++)
        y->turn[c] += (double)(at_i[c] - at_j[c]);
}

#endif

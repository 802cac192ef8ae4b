/* Sums over triplets of edge_network.c: of features src0 with a row for every edge, times functions
 * src1 of the distance, times Y_l of the angle (see angles()). All features of an atom's edges are
 * put side by side, so that sums become matrix products. */
#ifndef DCASE_EDGE_TRIPLETS_H
#define DCASE_EDGE_TRIPLETS_H

#include "edge_network.h"

/* B[m, wide] = A[n, m] transposed; what is beside it stays */
static void turn(integer n, integer m, integer wide, const REAL *restrict A, REAL *restrict B)
{
    for (integer i = 0; i < n; i++)
        for (integer q = 0; q < m; q++)
            B[q * wide + i] = A[i * m + q];
}

/* DimeNet: dst[i->j] = sum over the edges k->i and l of Y_l src0[k->i] src1[pair of k->i, l] */
static void triplets_of_source(const evaluation *c, integer P, const step *s)
{
    const integer L = c->orders, m = s->m;
    const REAL *x = SLOT(s->src[0]), *f = SLOT(s->src[1]);
    REAL *y = SLOT(s->dst);
    for (integer a = 0; a < c->atoms; a++) {
        const integer n = c->neighbours[a], wide = padded(n), *e = c->into + c->first[a];
        REAL *const S = c->scratch, *const out = S + n * L * m;
        for (integer b = 0; b < n; b++)
            for (integer l = 0; l < L; l++) {
                const REAL *one = x + e[b] * m, *other = f + (PAIR(e[b]) * L + l) * m;
                REAL *restrict to = S + (b * L + l) * m;
                for (integer q = 0; q < m; q++)
                    to[q] = one[q] * other[q];
            }
        matrix(n, n * L, m, c->angular + c->place[a], 1, wide, S, out, 0);
        for (integer b = 0; b < n; b++)
            memcpy(y + OPPOSITE(e[b]) * m, out + b * m, (size_t)m * sizeof(REAL));
    }
}

static void triplets_of_source_back(const evaluation *c, integer P, const step *s)
{
    const integer L = c->orders, m = s->m;
    const REAL *x = SLOT(s->src[0]), *f = SLOT(s->src[1]), *g = SLOT(s->gdst);
    REAL *gx = gradient(c, P, s, 0, 0), *gf = gradient(c, P, s, 1, 0);
    for (integer a = 0; a < c->atoms; a++) {
        const integer n = c->neighbours[a], wide = padded(n), *e = c->into + c->first[a];
        REAL *const S = c->scratch, *const gS = S + n * L * m, *const out = gS + n * L * m,
                    *const across = out + n * m;
        for (integer b = 0; b < n; b++) {
            memcpy(out + b * m, g + OPPOSITE(e[b]) * m, (size_t)m * sizeof(REAL));
            for (integer l = 0; l < L; l++) {
                const REAL *one = x + e[b] * m, *other = f + (PAIR(e[b]) * L + l) * m;
                REAL *restrict to = S + (b * L + l) * m;
                for (integer q = 0; q < m; q++)
                    to[q] = one[q] * other[q];
            }
        }
        memset(across, 0, (size_t)(wide * m) * sizeof(REAL));
        turn(n, m, wide, out, across);
        matrix(n * L, m, wide, S, m, 1, across, c->angular_gradient + c->place[a], 1);
        matrix(n * L, n, m, c->angular + c->place[a], wide, 1, out, gS, 0);
        for (integer b = 0; b < n; b++)
            for (integer l = 0; l < L; l++) {
                const integer at = (PAIR(e[b]) * L + l) * m;
                const REAL *one = x + e[b] * m, *other = f + at, *from = gS + (b * L + l) * m;
                REAL *restrict to = gx + e[b] * m, *restrict too = gf + at;
                for (integer q = 0; q < m; q++) {
                    to[q] += from[q] * other[q];
                    too[q] += from[q] * one[q];
                }
            }
    }
}

/* GemNet: dst[c->a, q] = sum over l of src1[pair of c->a, q, l] sum over b->a of Y_l src0[b->a] */
static void triplets_of_target(const evaluation *c, integer P, const step *s)
{
    const integer L = c->orders, m = s->k, Q = s->m / s->k;
    const REAL *x = SLOT(s->src[0]), *R = SLOT(s->src[1]);
    REAL *y = SLOT(s->dst);
    for (integer a = 0; a < c->atoms; a++) {
        const integer n = c->neighbours[a], wide = padded(n), *e = c->into + c->first[a];
        REAL *const own = c->scratch, *const X = own + n * m;
        for (integer b = 0; b < n; b++)
            memcpy(own + b * m, x + e[b] * m, (size_t)m * sizeof(REAL));
        matrix(n * L, n, m, c->angular + c->place[a], wide, 1, own, X, 0);
        for (integer b = 0; b < n; b++)
            matrix(Q, L, m, R + PAIR(e[b]) * Q * L, L, 1, X + b * L * m, y + e[b] * Q * m, 0);
    }
}

static void triplets_of_target_back(const evaluation *c, integer P, const step *s)
{
    const integer L = c->orders, m = s->k, Q = s->m / s->k, high = padded(L);
    const REAL *x = SLOT(s->src[0]), *R = SLOT(s->src[1]), *g = SLOT(s->gdst);
    REAL *gx = SLOT(s->gsrc[0]), *gR = gradient(c, P, s, 1, 0);
    for (integer a = 0; a < c->atoms; a++) {
        const integer n = c->neighbours[a], wide = padded(n), *e = c->into + c->first[a];
        REAL *const own = c->scratch, *const X = own + n * m, *const gX = X + n * L * m,
                    *const across = gX + n * L * m, *const turned = across + wide * m,
                    *const part = turned + high * m;
        for (integer b = 0; b < n; b++)
            memcpy(own + b * m, x + e[b] * m, (size_t)m * sizeof(REAL));
        memset(across, 0, (size_t)((wide + high) * m) * sizeof(REAL)); /* and turned */
        turn(n, m, wide, own, across);
        matrix(n * L, n, m, c->angular + c->place[a], wide, 1, own, X, 0);
        for (integer b = 0; b < n; b++) {
            const REAL *from = g + e[b] * Q * m, *mine = X + b * L * m;
            const integer at = PAIR(e[b]) * Q * L;
            matrix(L, Q, m, R + at, 1, L, from, gX + b * L * m, 0);
            turn(L, m, high, mine, turned);
            matrix(Q, m, high, from, m, 1, turned, part, 0);
            for (integer q = 0; q < Q; q++)
                for (integer l = 0; l < L; l++)
                    gR[at + q * L + l] += part[q * high + l];
        }
        matrix(n * L, m, wide, gX, m, 1, across, c->angular_gradient + c->place[a], 1);
        matrix(n, n * L, m, c->angular + c->place[a], 1, wide, gX, own, 0);
        for (integer b = 0; gx && b < n; b++)
            for (integer q = 0; q < m; q++)
                gx[e[b] * m + q] = (s->add[0] ? gx[e[b] * m + q] : 0) + own[b * m + q];
    }
}

#endif

/* Instructions of edge_network.c that go row by row: each call does rows begin ... end, at most
 * CHUNK of them. NAME_back() is NAME()'s gradient. */
#ifndef DCASE_EDGE_ROWS_H
#define DCASE_EDGE_ROWS_H

#include "edge_network.h"

/* dst = scale (act(src0 W + b) + src1); w: W, b or NULL, W transposed, all packed; number[0]:
 * blocks on W's diagonal; number[1] and [2]: REALs that a block takes in W and in W transposed */
static void dense(const evaluation *c, const step *s, integer begin, integer end)
{
    const integer rows = end - begin, k = s->k, m = s->m, blocks = s->number[0], at = begin * m;
    const REAL *x = SLOT(s->src[0]) + begin * k, *kept = SLOT(s->src[1]), scale = (REAL)s->scale;
    REAL *y = SLOT(s->dst), *const straight = s->act.kind < 0 ? y + at : c->scratch;
    for (integer b = 0; b < blocks; b++)
        packed(rows, k / blocks, m / blocks, x + b * (k / blocks), k, s->w[0] + b * s->number[1],
               s->w[1], straight + b * (m / blocks), m, 0);
    bend(c, s, rows, straight, begin);
    if (kept)
        for (integer q = at; q < at + rows * m; q++)
            y[q] = scale * (y[q] + kept[q]);
}

static void dense_back(const evaluation *c, const step *s, integer begin, integer end)
{
    const integer rows = end - begin, k = s->k, m = s->m, blocks = s->number[0], at = begin * m;
    REAL *g = SLOT(s->gdst), *gx = SLOT(s->gsrc[0]), *gkept = SLOT(s->gsrc[1]);
    const REAL scale = (REAL)s->scale;
    if (s->src[1] >= 0) {
        if (scale != 1)
            for (integer q = at; q < at + rows * m; q++)
                g[q] *= scale;
        if (gkept && s->add[1])
            for (integer q = at; q < at + rows * m; q++)
                gkept[q] += g[q];
        else if (gkept)
            memcpy(gkept + at, g + at, (size_t)(rows * m) * sizeof(REAL));
    }
    if (!gx)
        return;
    unbend(c, s, rows, g + at, begin);
    for (integer b = 0; b < blocks; b++)
        packed(rows, m / blocks, k / blocks, g + at + b * (m / blocks), m,
               s->w[2] + b * s->number[2], NULL, gx + begin * k + b * (k / blocks), k,
               (int)s->add[0]);
}

/* dst[e] = act(src0[target] + src1[source] + src2[e or its pair]) */
static void join(const evaluation *c, integer P, const step *s, integer begin, integer end)
{
    const integer m = s->m;
    const REAL *at_target = SLOT(s->src[0]), *at_source = SLOT(s->src[1]), *own = SLOT(s->src[2]);
    const int of_pairs = c->layout[2 * s->src[2]] == 1;
    REAL *const straight = s->act.kind < 0 ? SLOT(s->dst) + begin * m : c->scratch;
    for (integer e = begin; e < end; e++) {
        const REAL *a = at_target + TARGET(e) * m, *b = at_source + SOURCE(e) * m,
                   *o = own + (of_pairs ? PAIR(e) : e) * m;
        REAL *restrict to = straight + (e - begin) * m;
        for (integer q = 0; q < m; q++)
            to[q] = a[q] + b[q] + o[q];
    }
    bend(c, s, end - begin, straight, begin);
}

static void join_back(const evaluation *c, integer P, const step *s, integer begin, integer end)
{
    const integer m = s->m;
    REAL *g = SLOT(s->gdst), *at_target = gradient(c, P, s, 0, begin),
         *at_source = gradient(c, P, s, 1, begin);
    const int of_pairs = c->layout[2 * s->src[2]] == 1;
    REAL *own = of_pairs ? gradient(c, P, s, 2, begin) : SLOT(s->gsrc[2]);
    if (own && !of_pairs && !s->add[2]) /* of these rows alone */
        memset(own + begin * m, 0, (size_t)((end - begin) * m) * sizeof(REAL));
    unbend(c, s, end - begin, g + begin * m, begin);
    for (integer e = begin; e < end; e++) {
        REAL *to[3] = {at_target ? at_target + TARGET(e) * m : NULL,
                       at_source ? at_source + SOURCE(e) * m : NULL,
                       own ? own + (of_pairs ? PAIR(e) : e) * m : NULL};
        for (int k = 0; k < 3; k++)
            if (to[k])
                accumulate(to[k], g + e * m, m);
    }
}

/* dst = act(scale (src0 + src1)), src1 of the opposite edge if number[0] */
static void sum(const evaluation *c, integer P, const step *s, integer begin, integer end)
{
    const integer m = s->m;
    const REAL *x = SLOT(s->src[0]), *z = SLOT(s->src[1]), scale = (REAL)s->scale;
    REAL *const straight = s->act.kind < 0 ? SLOT(s->dst) + begin * m : c->scratch;
    for (integer i = begin; i < end; i++) {
        const REAL *a = x + i * m, *b = z + (s->number[0] ? OPPOSITE(i) : i) * m;
        REAL *restrict to = straight + (i - begin) * m;
        for (integer q = 0; q < m; q++)
            to[q] = scale * (a[q] + b[q]);
    }
    bend(c, s, end - begin, straight, begin);
}

static void sum_back(const evaluation *c, integer P, const step *s, integer begin, integer end)
{
    const integer m = s->m;
    REAL *g = SLOT(s->gdst);
    const REAL scale = (REAL)s->scale;
    unbend(c, s, end - begin, g + begin * m, begin);
    for (int k = 0; k < 2; k++) {
        REAL *gx = SLOT(s->gsrc[k]);
        for (integer i = begin; gx && i < end; i++) {
            const REAL *restrict from = g + i * m;
            REAL *restrict to = gx + (k && s->number[0] ? OPPOSITE(i) : i) * m;
            if (s->add[k])
                for (integer q = 0; q < m; q++)
                    to[q] += scale * from[q];
            else
                for (integer q = 0; q < m; q++)
                    to[q] = scale * from[q];
        }
    }
}

/* dst[e] = src0[e] src1[pair of e] */
static void by_pair(const evaluation *c, integer P, const step *s, integer begin, integer end)
{
    const integer m = s->m;
    for (integer e = begin; e < end; e++) {
        const REAL *x = SLOT(s->src[0]) + e * m, *w = SLOT(s->src[1]) + PAIR(e) * m;
        REAL *restrict y = SLOT(s->dst) + e * m;
        for (integer q = 0; q < m; q++)
            y[q] = x[q] * w[q];
    }
}

/* to (+)= x y */
static inline void accumulate_product(REAL *restrict to, const REAL *restrict x,
                                      const REAL *restrict y, integer m, int add)
{
    if (add)
        for (integer q = 0; q < m; q++)
            to[q] += x[q] * y[q];
    else
        for (integer q = 0; q < m; q++)
            to[q] = x[q] * y[q];
}

/* The gradients of x and w in x w, where h is that of the product */
static void product_back(const evaluation *c, integer P, const step *s, integer e, const REAL *h)
{
    const integer m = s->m, p = PAIR(e);
    const REAL *x = SLOT(s->src[0]) + e * m, *w = SLOT(s->src[1]) + p * m;
    REAL *gx = SLOT(s->gsrc[0]), *gw = SLOT(s->gsrc[1]);
    if (gx)
        accumulate_product(gx + e * m, h, w, m, (int)s->add[0]);
    if (gw) /* edge e < P comes before edge P + e of the same pair */
        accumulate_product(gw + p * m, h, x, m, s->add[1] || e >= P);
}

static void by_pair_back(const evaluation *c, integer P, const step *s, integer begin, integer end)
{
    for (integer e = begin; e < end; e++)
        product_back(c, P, s, e, SLOT(s->gdst) + e * s->m);
}

/* dst[atom] = sum over the edges e into it of src0[e] src1[pair of e] */
static void collect(const evaluation *c, integer P, const step *s, integer begin, integer end)
{
    const integer m = s->m;
    REAL *y = SLOT(s->dst);
    if (begin == 0)
        memset(y, 0, (size_t)(c->atoms * m) * sizeof(REAL));
    for (integer e = begin; e < end; e++)
        accumulate_product(y + TARGET(e) * m, SLOT(s->src[0]) + e * m,
                           SLOT(s->src[1]) + PAIR(e) * m, m, 1);
}

static void collect_back(const evaluation *c, integer P, const step *s, integer begin, integer end)
{
    for (integer e = begin; e < end; e++)
        product_back(c, P, s, e, SLOT(s->gdst) + TARGET(e) * s->m);
}

#endif

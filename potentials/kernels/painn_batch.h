/* What is kept of a batch between the passes of PaiNN's training step, and where. */
#ifndef DCASE_PAINN_BATCH_H
#define DCASE_PAINN_BATCH_H

#include "painn_common.h"
#include "training_share.h"

/* Names of sizes: atoms, pairs, F (hidden), blocks, half of the read-out, elements, intervals. */
typedef struct {
    integer n, count, F, layers, half, elements, intervals;
} measures;

static measures measures_of(const integer *s)
{
    return (measures){s[0], s[1], s[2], s[3], s[4], s[5], s[6]};
}

/* What the forces have found of a block: gradients of the energies. Those are the gradients of S by
 * the rates, too, as sum_i de_i is the only part of S with rates in it: backward() has them from
 * here. */
typedef struct {
    REAL *s_out, *v_out; /* by what the block leaves, [n, F] and [n, 3, F] */
    REAL *y, *joined;    /* in the update: by what comes out of the activation [n, F]; [n, 2F] */
    REAL *s, *v;         /* by what its messages leave */
    REAL *z;             /* in phi: by what comes out of the activation, [n, F] */
    REAL *phi;           /* [2, n, 3F]: the gradient of S, and behind it that of the energies */
} pulls;

#define PULLS 18 /* numbers of these, in F for each atom */

/* Where everything of a batch is kept between the two calls; filled from one block of memory. */
typedef struct {
    REAL *own;               /* of the elements: s, z, z_bent, phi, [elements, 6F] */
    REAL *blocks, *pulls;
    REAL *s;                 /* after the last block, [2, n, F] */
    REAL *q, *q_slope;       /* read-out, [n, half] */
    REAL *gs, *gv, *next;    /* [n, F] and two of [n, 3F] */
    REAL *room;              /* [n, 24F], [elements, 9F] or [5, n, half] */
} places;

static integer lay_out(const measures *m, REAL *work, places *p)
{
    const integer nF = m->n * m->F, own = 9 * m->elements * m->F, head = 5 * m->n * m->half;
    integer room = 24 * nF > own ? 24 * nF : own;
    room = room > head ? room : head;
    integer used = 0;
#define PLACE(name, count)                                                                         \
    p->name = work + used;                                                                         \
    used += (count)
    PLACE(own, 6 * m->elements * m->F);
    PLACE(blocks, m->layers * 2 * BLOCK * nF);
    PLACE(pulls, m->layers * PULLS * nF);
    PLACE(s, 2 * nF);
    PLACE(q, m->n * m->half);
    PLACE(q_slope, m->n * m->half);
    PLACE(gs, nF);
    PLACE(gv, 3 * nF);
    PLACE(next, 3 * nF);
    PLACE(room, room);
#undef PLACE
    return used;
}

static block block_at(const measures *m, const places *p, integer layer)
{
    block b = place_block(p->blocks + layer * 2 * BLOCK * m->n * m->F, m->n, m->F, 2);
    if (layer == 0) {
        const integer eF = m->elements * m->F;
        b.s = p->own;
        b.z = b.s + eF;
        b.z_bent = b.z + eF;
        b.phi = b.z_bent + eF;
    }
    return b;
}

static pulls pulls_at(const measures *m, const places *p, integer layer)
{
    const integer nF = m->n * m->F;
    REAL *const at = p->pulls + layer * PULLS * nF;
    return (pulls){.s_out = at, .v_out = at + nF, .y = at + 4 * nF, .joined = at + 5 * nF,
                   .s = at + 7 * nF, .v = at + 8 * nF, .z = at + 11 * nF, .phi = at + 12 * nF};
}

static void take_pairs(const share *c, const measures *m)
{
    ray *const rays = c->pairs;
    for (integer q = 0; q < m->count; q++) {
        pair *p = &rays[q].p;
        take_pair(c, q, p);
        point(rays + q);
        locate(p, m->intervals, c->spacing);
    }
}

#endif

/* PaiNN with tabulated filters for training: energies and forces of a batch, and the gradient of
 *
 *     S = sum_i gE_i e_i + sum_i gF_i . F_i
 *
 * by all weights and by the table, for given gE and gF; see schnet_train.c. What the first block's
 * atoms send depends on their elements only, and is computed for these.
 */
#include "painn_common.h"
#include "training_share.h"

integer size_of_pair(void) { return (integer)sizeof(ray); }

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

/* Number of REALs that a batch needs. */
integer size_of_work(const integer *sizes)
{
    const measures m = measures_of(sizes);
    places p;
    return lay_out(&m, NULL, &p);
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
        p->i = c->list[q] - c->first;
        p->j = c->list[c->apart + q] - c->first;
        double square = 0;
        for (int e = 0; e < 3; e++) {
            p->r[e] = c->r[3 * q + e];
            square += p->r[e] * p->r[e];
        }
        p->d = sqrt(square);
        point(rays + q);
        locate(p, m->intervals, c->spacing);
    }
}

static void forward(const share *c)
{
    const measures m = measures_of(c->sizes);
    const integer n = m.n, F = m.F, nF = n * F, columns = 3 * m.layers * F, half = m.half;
    const activation act = {(int)c->kind, NULL};
    const REAL *const *out = c->weights + 1 + WEIGHTS * m.layers;
    ray *const rays = c->pairs;
    places s;
    lay_out(&m, c->work, &s);
    take_pairs(c, &m);
    for (integer l = 0; l < m.layers; l++) {
        const block_weights w = weights_of(c->weights, l);
        const block b = block_at(&m, &s, l), after = block_at(&m, &s, l + 1);
        if (l == 0)
            memcpy(b.s, c->weights[0], (size_t)(m.elements * F) * sizeof(REAL));
        phi_of(&b, &w, act, 0, l ? n : m.elements, F, s.room);
        for (integer a = 0; a < n; a++)
            memcpy(b.joined + a * 2 * F, b.s + (l ? a : c->species[a]) * F,
                   (size_t)F * sizeof(REAL));
        if (l)
            memcpy(b.turned, b.v, (size_t)(3 * nF) * sizeof(REAL));
        else
            memset(b.turned, 0, (size_t)(3 * nF) * sizeof(REAL));
        for (integer q = 0; q < m.count; q++) {
            const integer i = rays[q].p.i, j = rays[q].p.j;
            send(rays + q, F, c->table + 3 * l * F, columns, b.phi, l ? i : c->species[i], l ? j : c->species[j],
                 l ? b.v : NULL, b.joined, 2 * F, b.turned, 3 * F);
        }
        const int last = l + 1 == m.layers;
        update_of(&b, &w, act, (REAL)c->softening, 0, n, F, last ? s.s : after.s,
                  last ? NULL : after.v, s.room);
    }
    REAL *const h = s.room;
    product(n, F, half, s.s, out[0], out[1], s.q, 0);
    activate((int)c->head, NULL, n * half, s.q, h, s.q_slope, NULL);
    for (integer a = 0; a < n; a++) {
        double sum = (double)out[4][0];
        for (integer q = 0; q < half; q++)
            sum += (double)(h[a * half + q] * out[3][q]);
        c->energy[a] = sum;
    }
    if (!c->force)
        return;

    for (integer a = 0; a < n; a++)
        for (integer q = 0; q < half; q++)
            h[a * half + q] = s.q_slope[a * half + q] * out[3][q];
    if (m.layers)
        product(n, half, F, h, out[2], NULL, pulls_at(&m, &s, m.layers - 1).s_out, 0);
    for (integer l = m.layers - 1; l >= 0; l--) {
        const block_weights w = weights_of(c->weights, l);
        const block b = block_at(&m, &s, l);
        const pulls g = pulls_at(&m, &s, l), before = pulls_at(&m, &s, l ? l - 1 : 0);
        const int vectors = l + 1 < m.layers;
        REAL *const to_phi = g.phi + 3 * nF;
        memcpy(g.s, g.s_out, (size_t)nF * sizeof(REAL));
        if (vectors)
            memcpy(g.v, g.v_out, (size_t)(3 * nF) * sizeof(REAL));
        update_back(&b, &w, 0, n, F, vectors, g.s, g.v, g.y, g.joined, s.room);
        if (l) {
            memset(to_phi, 0, (size_t)(3 * nF) * sizeof(REAL));
            memcpy(before.v_out, g.v, (size_t)(3 * nF) * sizeof(REAL));
        }
        for (integer q = 0; q < m.count; q++) {
            const integer i = rays[q].p.i, j = rays[q].p.j;
            send_back(rays + q, F, c->table + 3 * l * F, columns, b.phi, l ? i : c->species[i],
                      l ? j : c->species[j], l ? b.v : NULL, g.s, g.v, to_phi, before.v_out, 3 * F);
        }
        if (l) {
            memcpy(before.s_out, g.s, (size_t)nF * sizeof(REAL));
            phi_back(&b, &w, 0, n, F, to_phi, 3 * F, before.s_out, g.z, s.room);
        }
    }
    memset(c->force, 0, (size_t)(3 * n) * sizeof(double));
    for (integer q = 0; q < m.count; q++) {
        double g[3];
        gradient_of_ray(&rays[q].p, g);
        for (int e = 0; e < 3; e++) {
            c->force[3 * rays[q].p.i + e] += g[e];
            c->force[3 * rays[q].p.j + e] -= g[e];
        }
    }
}

/* Rates of what send_to() adds; without vectors dphi, v and dv are zero, and not there. */
INLINED void send_rate_to(integer F, integer lanes, filters W, filters dW, const REAL u[3],
                          const REAL du[3], const REAL *phi, const REAL *dphi, const REAL *v,
                          const REAL *dv, int vectors, REAL *to_s, REAL *to_v)
{
    const wide phi_s = take(phi, lanes), phi_u = take(phi + F, lanes);
    wide d_s = dW.s * phi_s, d_by_u = dW.u * phi_u, keep = {0}, d_keep = {0};
    const wide by_u = W.u * phi_u;
    if (vectors) {
        const wide phi_v = take(phi + 2 * F, lanes);
        d_s += W.s * take(dphi, lanes);
        d_by_u += W.u * take(dphi + F, lanes);
        keep = W.v * phi_v;
        d_keep = dW.v * phi_v + W.v * take(dphi + 2 * F, lanes);
    }
    add(to_s, d_s, lanes);
    for (int c = 0; c < 3; c++) {
        wide x = d_by_u * u[c] + by_u * du[c];
        if (vectors)
            x += d_keep * take(v + c * F, lanes) + keep * take(dv + c * F, lanes);
        add(to_v + c * F, x, lanes);
    }
}

/* Rates of what a block's messages add to s (in rows of 2F numbers) and v */
INLINED void message_rates(const share *c, const measures *m, const block *b, integer l,
                           int vectors, REAL *to_s, REAL *to_v)
{
    const integer F = m->F, nF = m->n * F, columns = 3 * m->layers * F;
    const ray *const rays = c->pairs;
    for (integer q = 0; q < m->count; q++) {
        const ray *y = rays + q;
        const integer i = y->p.i, j = y->p.j;
        const REAL *at = c->table + 3 * l * F + y->p.row * columns, *v_i = b->v + i * 3 * F,
                   *v_j = b->v + j * 3 * F;
        const REAL *phi_i = b->phi + (vectors ? i : c->species[i]) * 3 * F,
                   *phi_j = b->phi + (vectors ? j : c->species[j]) * 3 * F;
        REAL *s_i = to_s + i * 2 * F, *s_j = to_s + j * 2 * F, *to_v_i = to_v + i * 3 * F,
             *to_v_j = to_v + j * 3 * F, back[3], d_back[3], rate[4];
        for (int k = 0; k < 4; k++)
            rate[k] = (REAL)y->p.rate * y->p.slope[k];
        opposite(y->u, back);
        opposite(y->du, d_back);
        FOR_LANES(
            const filters W = filters_at(y->p.value, at + f, columns, F, lanes, vectors);
            const filters dW = filters_at(rate, at + f, columns, F, lanes, vectors);
            send_rate_to(F, lanes, W, dW, y->u, y->du, phi_j + f, phi_j + 3 * nF + f, v_j + f,
                         v_j + 3 * nF + f, vectors, s_i + f, to_v_i + f);
            send_rate_to(F, lanes, W, dW, back, d_back, phi_i + f, phi_i + 3 * nF + f, v_i + f,
                         v_i + 3 * nF + f, vectors, s_j + f, to_v_j + f))
    }
}

/* Rates of the whole batch along the direction -gF. */
static void rates(const share *c, const measures *m, const places *s)
{
    const integer n = m->n, F = m->F, nF = n * F;
    ray *const rays = c->pairs;
    for (integer q = 0; q < m->count; q++) {
        ray *y = rays + q;
        double dr[3];
        y->p.rate = 0;
        for (int e = 0; e < 3; e++) {
            dr[e] = c->gF[3 * y->p.i + e] - c->gF[3 * y->p.j + e];
            y->p.rate += dr[e] * y->p.r[e] / y->p.d;
        }
        for (int e = 0; e < 3; e++)
            y->du[e] = (REAL)((dr[e] - y->p.rate * y->p.r[e] / y->p.d) / y->p.d);
    }
    for (integer l = 0; l < m->layers; l++) {
        const block_weights w = weights_of(c->weights, l);
        const block b = block_at(m, s, l), after = block_at(m, s, l + 1);
        REAL *const dphi = l ? b.phi + 3 * nF : NULL, *const joined = b.joined + 2 * nF,
                    *const turned = b.turned + 3 * nF, *const room = s->room;
        if (l) {
            REAL *const dz = b.z + nF;
            product(n, F, F, b.s + nF, w.dense, NULL, dz, 0);
#pragma GCC ivdep
            for (integer q = 0; q < nF; q++)
                room[q] = b.z_bent[q] * dz[q];
            product(n, F, 3 * F, room, w.split, NULL, dphi, 0);
            for (integer a = 0; a < n; a++)
                memcpy(joined + a * 2 * F, b.s + nF + a * F, (size_t)F * sizeof(REAL));
            memcpy(turned, b.v + 3 * nF, (size_t)(3 * nF) * sizeof(REAL));
        } else {
            memset(joined, 0, (size_t)(2 * nF) * sizeof(REAL));
            memset(turned, 0, (size_t)(3 * nF) * sizeof(REAL));
        }
        if (l)
            message_rates(c, m, &b, l, 1, joined, turned);
        else
            message_rates(c, m, &b, l, 0, joined, turned);
        const int last = l + 1 == m->layers;
        REAL *const next_s = last ? s->s + nF : after.s + nF, *const next_v = after.v + 3 * nF;
        REAL *const mixed = b.mixed + 6 * nF, *const dot = b.dot + nF, *const dy = b.y + nF,
                    *const a = b.a + 3 * nF;
        product(3 * n, F, 2 * F, turned, w.mix, NULL, mixed, 0);
        for (integer i = 0; i < n; i++) {
            const REAL *x = b.mixed + i * 6 * F, *dx = mixed + i * 6 * F,
                       *length = b.joined + i * 2 * F + F;
            REAL *restrict d_length = joined + i * 2 * F + F, *restrict d_dot = dot + i * F;
#pragma GCC ivdep
            for (integer f = 0; f < F; f++) {
                REAL by_length = 0, by_dot = 0;
                for (int e = 0; e < 3; e++) {
                    const integer v = 2 * e * F + f, u = v + F;
                    by_length += x[v] * dx[v];
                    by_dot += dx[v] * x[u] + x[v] * dx[u];
                }
                d_length[f] = by_length / length[f];
                d_dot[f] = by_dot;
            }
        }
        product(n, 2 * F, F, joined, w.bend, NULL, dy, 0);
#pragma GCC ivdep
        for (integer q = 0; q < nF; q++)
            room[q] = b.y_bent[q] * dy[q];
        product(n, F, 3 * F, room, w.part, NULL, a, 0);
        for (integer i = 0; i < n; i++) {
            const REAL *ai = b.a + i * 3 * F, *dai = a + i * 3 * F;
#pragma GCC ivdep
            for (integer f = 0; f < F; f++)
                next_s[i * F + f] = joined[i * 2 * F + f] + dai[f] +
                                    dai[2 * F + f] * b.dot[i * F + f] +
                                    ai[2 * F + f] * dot[i * F + f];
            for (int e = 0; e < 3 && !last; e++) {
                const integer row = 3 * i + e;
                const REAL *u = b.mixed + row * 2 * F + F, *du = mixed + row * 2 * F + F;
#pragma GCC ivdep
                for (integer f = 0; f < F; f++)
                    next_v[row * F + f] =
                        turned[row * F + f] + dai[F + f] * u[f] + ai[F + f] * du[f];
            }
        }
    }
}

/* Of an activation with pre-activations z and rates dz behind them, count each (moves: whether there
 * are rates): from the gradients by what comes out, g and dg, those by z, in the place of g, and
 * behind them those by dz; h: what comes out, and behind it its rate. */
static void bend_back(int kind, integer count, int moves, const REAL *z, REAL *g, const REAL *dg,
                      REAL *h, REAL *slope, REAL *curvature)
{
    activate(kind, NULL, count, z, h, slope, moves ? curvature : NULL);
    if (moves) {
        const REAL *dz = z + count;
        REAL *dgz = g + count, *dh = h + count;
#pragma GCC ivdep
        for (integer q = 0; q < count; q++) {
            dh[q] = slope[q] * dz[q];
            g[q] = g[q] * slope[q] + dg[q] * curvature[q] * dz[q];
            dgz[q] = dg[q] * slope[q];
        }
    } else
#pragma GCC ivdep
        for (integer q = 0; q < count; q++)
            g[q] *= slope[q];
}

/* Of an atom's update: the gradients by a; d: by the rates */
INLINED void by_factors(const block *b, const pulls *d, integer i, integer n, integer F, integer f,
                        integer lanes, int moves, int vectors, const REAL *gs, const REAL *gv,
                        REAL *ga)
{
    const integer q = i * F + f, x = i * 6 * F + f, g = i * 3 * F + f, nF = n * F;
    const wide dot = take(b->dot + q, lanes), up = take(gs + q, lanes);
    wide by_vv = {0}, by_sv = up * dot;
    for (int c = 0; c < 3 && vectors; c++)
        by_vv += take(gv + g + c * F, lanes) * take(b->mixed + x + (2 * c + 1) * F, lanes);
    if (moves) {
        const wide d_up = take(d->s_out + q, lanes);
        wide d_vv = {0};
        by_sv += d_up * take(b->dot + nF + q, lanes);
        for (int c = 0; c < 3 && vectors; c++) {
            const wide dg = take(d->v_out + g + c * F, lanes);
            const REAL *u = b->mixed + x + (2 * c + 1) * F;
            by_vv += dg * take(u + 6 * nF, lanes);
            d_vv += dg * take(u, lanes);
        }
        put(ga + 3 * nF + g, d_up, lanes);
        put(ga + 3 * nF + g + F, d_vv, lanes);
        put(ga + 3 * nF + g + 2 * F, d_up * dot, lanes);
    }
    put(ga + g, up, lanes);
    put(ga + g + F, by_vv, lanes);
    put(ga + g + 2 * F, by_sv, lanes);
}

/* Likewise those by V v and U v, and by s */
INLINED void by_mixed(const block *b, const pulls *d, integer i, integer n, integer F, integer f,
                      integer lanes, int moves, int vectors, const REAL *gj, REAL *gs,
                      const REAL *gv, REAL *gm)
{
    const integer q = i * F + f, j = i * 2 * F + f, x = i * 6 * F + f, g = i * 3 * F + f, nF = n * F;
    const wide one = 1 / take(b->joined + j + F, lanes), up = take(gs + q, lanes),
               vv = take(b->a + g + F, lanes), sv = take(b->a + g + 2 * F, lanes), zero = {0};
    wide by_dot = up * sv, by_length = take(gj + j + F, lanes) * one, d_by_dot = zero,
         d_by_length = zero, d_vv = zero;
    if (moves) {
        const wide d_up = take(d->s_out + q, lanes), d_sv = take(b->a + 3 * nF + g + 2 * F, lanes),
                   d_length = take(b->joined + 2 * nF + j + F, lanes);
        d_vv = take(b->a + 3 * nF + g + F, lanes);
        d_by_dot = d_up * sv;
        d_by_length = take(d->joined + j + F, lanes) * one;
        by_dot += d_up * d_sv;
        by_length -= d_by_length * d_length * one;
    }
    for (int c = 0; c < 3; c++) {
        const integer at = x + 2 * c * F;
        const wide v = take(b->mixed + at, lanes), u = take(b->mixed + at + F, lanes);
        wide by_v = by_dot * u + by_length * v, by_u = by_dot * v;
        if (vectors)
            by_u += take(gv + g + c * F, lanes) * vv;
        if (moves) {
            const wide dv = take(b->mixed + 6 * nF + at, lanes),
                       du = take(b->mixed + 6 * nF + at + F, lanes);
            wide d_by_u = d_by_dot * v;
            by_v += d_by_dot * du + d_by_length * dv;
            by_u += d_by_dot * dv;
            if (vectors) {
                const wide dg = take(d->v_out + g + c * F, lanes);
                by_u += dg * d_vv;
                d_by_u += dg * vv;
            }
            put(gm + 6 * nF + at, d_by_dot * u + d_by_length * v, lanes);
            put(gm + 6 * nF + at + F, d_by_u, lanes);
        }
        put(gm + at, by_v, lanes);
        put(gm + at + F, by_u, lanes);
    }
    put(gs + q, up + take(gj + j, lanes), lanes);
}

/* Of an update: to what goes into it, in the place of gs and gv, and to its weights (5 to 9 of a
 * block) */
INLINED void update_gradients(const measures *m, const places *s, const block *b, const pulls *d,
                              const block_weights *w, int kind, int moves, int vectors, REAL *gs,
                              REAL *gv, REAL *const *to)
{
    const integer n = m->n, F = m->F, nF = n * F, twice = moves ? 2 * n : n;
    REAL *const ga = s->room, *const gy = ga + 6 * nF, *const gj = gy + 2 * nF,
                *const gm = gj + 2 * nF, *const h = gm + 12 * nF; /* [2, nF], ends at 24 */
    REAL *const bent = gm, *const curved = gm + nF;
    for (integer i = 0; i < n; i++)
        FOR_LANES(by_factors(b, d, i, n, F, f, lanes, moves, vectors, gs, gv, ga))
    product(n, 3 * F, F, ga, w->part_t, NULL, gy, 0);
    bend_back(kind, nF, moves, b->y, gy, d->y, h, bent, curved);
    outer(twice, 3 * F, F, ga, h, to[7]);
    add_columns(n, 3 * F, ga, to[8]);
    product(n, F, 2 * F, gy, w->bend_t, NULL, gj, 0);
    outer(twice, F, 2 * F, gy, b->joined, to[5]);
    add_columns(n, F, gy, to[6]);
    for (integer i = 0; i < n; i++)
        FOR_LANES(by_mixed(b, d, i, n, F, f, lanes, moves, vectors, gj, gs, gv, gm))
    outer(3 * twice, 2 * F, F, gm, b->turned, to[4]);
    product(3 * n, 2 * F, F, gm, w->mix_t, NULL, gv, vectors);
}

/* Gradients of one direction; send_to() and send_rate_to() backwards. g..: by what the receiver gets,
 * to_..: by what the sender has and by the filters, added to; d: by the rates. */
INLINED void gradients_to(integer F, integer lanes, filters W, filters dW, const REAL u[3],
                          const REAL du[3], const REAL *phi, const REAL *dphi, const REAL *v,
                          const REAL *dv, int moves, int vectors, const REAL *gs, const REAL *dgs,
                          const REAL *gv, const REAL *dgv, REAL *to_phi, REAL *to_v, filters *gW,
                          filters *gdW)
{
    const wide zero = {0}, phi_s = take(phi, lanes), phi_u = take(phi + F, lanes);
    const arrow g = take_arrow(gv, F, lanes), dg = moves ? take_arrow(dgv, F, lanes) : g;
    const wide by_s = take(gs, lanes), d_s = moves ? take(dgs, lanes) : zero;
    wide by_u = along(g, u), d_u = zero, to_s = by_s * W.s, to_u = by_u * W.u;
    if (moves) {
        by_u += along(dg, du);
        d_u = along(dg, u);
        to_s += d_s * dW.s;
        to_u = by_u * W.u + d_u * dW.u;
        gdW->s += d_s * phi_s;
        gdW->u += d_u * phi_u;
        if (vectors) {
            gW->s += d_s * take(dphi, lanes);
            gW->u += d_u * take(dphi + F, lanes);
        }
    }
    gW->s += by_s * phi_s;
    gW->u += by_u * phi_u;
    add(to_phi, to_s, lanes);
    add(to_phi + F, to_u, lanes);
    if (vectors) {
        const arrow sent = take_arrow(v, F, lanes);
        const wide phi_v = take(phi + 2 * F, lanes), keep = W.v * phi_v;
        wide by_v = dot(g, sent), d_v = zero, d_keep = zero, to_keep = zero;
        if (moves) {
            const wide d_phi = take(dphi + 2 * F, lanes);
            by_v += dot(dg, take_arrow(dv, F, lanes));
            d_v = dot(dg, sent);
            d_keep = dW.v * phi_v + W.v * d_phi;
            to_keep = d_v * dW.v;
            gW->v += d_v * d_phi;
            gdW->v += d_v * phi_v;
        }
        gW->v += by_v * phi_v;
        add(to_phi + 2 * F, to_keep + by_v * W.v, lanes);
        for (int c = 0; c < 3; c++)
            add(to_v + c * F, moves ? g.x[c] * keep + dg.x[c] * d_keep : g.x[c] * keep, lanes);
    }
}

/* Four rows of the table's gradient += those of a pair, from the gradients by W and dW = rate W' */
INLINED void table_back(REAL *at, integer columns, integer F, integer lanes, int moves,
                        int vectors, const REAL value[4], const REAL rate[4], filters gW,
                        filters gdW)
{
    for (int k = 0; k < 4; k++) {
        REAL *const to = at + k * columns;
        add(to, moves ? value[k] * gW.s + rate[k] * gdW.s : value[k] * gW.s, lanes);
        add(to + F, moves ? value[k] * gW.u + rate[k] * gdW.u : value[k] * gW.u, lanes);
        if (vectors)
            add(to + 2 * F, moves ? value[k] * gW.v + rate[k] * gdW.v : value[k] * gW.v, lanes);
    }
}

/* Of all messages of a block, from gs and gv (by the rates: d), gradients by the senders' phi (of the
 * first block: of their elements) and by v, added to */
INLINED void message_gradients(const share *c, const measures *m, const block *b, const pulls *d,
                               integer l, int moves, int vectors, const REAL *gs, const REAL *gv,
                               REAL *to_phi, REAL *to_v)
{
    const integer F = m->F, nF = m->n * F, columns = 3 * m->layers * F;
    const ray *const rays = c->pairs;
    for (integer q = 0; q < m->count; q++) {
        const ray *y = rays + q;
        const integer i = y->p.i, j = y->p.j, row_i = vectors ? i : c->species[i],
                      row_j = vectors ? j : c->species[j],
                      place = 3 * l * F + y->p.row * columns;
        const REAL *at = c->table + place, *v_i = b->v + i * 3 * F, *v_j = b->v + j * 3 * F,
                   *phi_i = b->phi + row_i * 3 * F, *phi_j = b->phi + row_j * 3 * F;
        const REAL *gs_i = gs + i * F, *gs_j = gs + j * F, *gv_i = gv + i * 3 * F,
                   *gv_j = gv + j * 3 * F, *ds_i = d->s + i * F, *ds_j = d->s + j * F,
                   *dv_i = d->v + i * 3 * F, *dv_j = d->v + j * 3 * F;
        REAL *to_i = to_phi + row_i * 3 * F, *to_j = to_phi + row_j * 3 * F,
             *to_v_i = to_v + i * 3 * F, *to_v_j = to_v + j * 3 * F;
        REAL *const table = c->table_gradient + place, back[3], d_back[3], rate[4];
        for (int k = 0; k < 4; k++)
            rate[k] = moves ? (REAL)y->p.rate * y->p.slope[k] : 0;
        opposite(y->u, back);
        opposite(y->du, d_back);
        FOR_LANES(
            const filters W = filters_at(y->p.value, at + f, columns, F, lanes, vectors);
            const filters dW = filters_at(rate, at + f, columns, F, lanes, vectors);
            filters gW = {{0}, {0}, {0}}; filters gdW = gW;
            gradients_to(F, lanes, W, dW, y->u, y->du, phi_j + f, phi_j + 3 * nF + f, v_j + f,
                         v_j + 3 * nF + f, moves, vectors, gs_i + f, ds_i + f, gv_i + f, dv_i + f,
                         to_j + f, to_v_j + f, &gW, &gdW);
            gradients_to(F, lanes, W, dW, back, d_back, phi_i + f, phi_i + 3 * nF + f, v_i + f,
                         v_i + 3 * nF + f, moves, vectors, gs_j + f, ds_j + f, gv_j + f, dv_j + f,
                         to_i + f, to_v_i + f, &gW, &gdW);
            table_back(table + f, columns, F, lanes, moves, vectors, y->p.value, rate, gW, gdW))
    }
}

/* The read-out: to its weights, and gs */
static void head_gradients(const share *c, const measures *m, const places *s, int moves)
{
    const integer n = m->n, F = m->F, half = m->half, nq = n * half;
    const REAL *const *out = c->weights + 1 + WEIGHTS * m->layers;
    REAL *const *to = c->gradients + 1 + 9 * m->layers;
    REAL *const h = s->room, *const curved = h + nq, *const g = curved + nq, *const dq = g + 2 * nq;
    activate((int)c->head, NULL, nq, s->q, h, s->q_slope, curved);
    if (moves)
        product(n, F, half, s->s + n * F, out[0], NULL, dq, 0);
    for (integer a = 0; a < n; a++) {
        const REAL e = (REAL)c->gE[a];
        to[3][0] += e;
        for (integer q = a * half, k = 0; k < half; q++, k++) {
            const REAL o = out[3][k];
            g[q] = s->q_slope[q] * e * o;
            to[2][k] += e * h[q];
            if (moves) {
                g[nq + q] = s->q_slope[q] * o;
                g[q] += curved[q] * dq[q] * o;
                to[2][k] += s->q_slope[q] * dq[q];
            }
        }
    }
    outer(moves ? 2 * n : n, half, F, g, s->s, to[0]);
    add_columns(n, half, g, to[1]);
    product(n, half, F, g, out[2], NULL, s->gs, 0);
}

/* After forward() with the same arguments and untouched work and pairs. gE [n]: gradient by the
 * atom energies; gF [n, 3]: by the forces, or NULL. gradients: of the weights that are no copies, in
 * torch's order [out, in], added to. table_gradient [intervals + 3, layers, 3F], added to. */
static void backward(const share *c)
{
    const measures m = measures_of(c->sizes);
    const integer n = m.n, F = m.F;
    const int moves = c->gF != NULL, kind = (int)c->kind;
    places s;
    lay_out(&m, c->work, &s);
    if (moves)
        rates(c, &m, &s);
    head_gradients(c, &m, &s, moves);
    REAL *gv = s.gv, *next = s.next;
    for (integer l = m.layers - 1; l >= 0; l--) {
        const block_weights w = weights_of(c->weights, l);
        const block b = block_at(&m, &s, l);
        const pulls d = pulls_at(&m, &s, l);
        REAL *const *to = c->gradients + 1 + 9 * l;
        const integer rows = l ? n : m.elements, twice = moves && l ? 2 * n : rows;
        if (l + 1 < m.layers) {
            if (moves)
                update_gradients(&m, &s, &b, &d, &w, kind, 1, 1, s.gs, gv, to);
            else
                update_gradients(&m, &s, &b, &d, &w, kind, 0, 1, s.gs, gv, to);
        } else if (moves)
            update_gradients(&m, &s, &b, &d, &w, kind, 1, 0, s.gs, gv, to);
        else
            update_gradients(&m, &s, &b, &d, &w, kind, 0, 0, s.gs, gv, to);
        REAL *gphi = l ? d.phi : s.room, *const g = l ? s.room : s.room + 3 * rows * F,
             *const h = g + 2 * rows * F, *const bent = h + 2 * rows * F,
             *const curved = bent + rows * F;
        memset(gphi, 0, (size_t)(3 * rows * F) * sizeof(REAL));
        if (l) {
            memcpy(next, gv, (size_t)(3 * n * F) * sizeof(REAL));
            if (moves)
                message_gradients(c, &m, &b, &d, l, 1, 1, s.gs, gv, gphi, next);
            else
                message_gradients(c, &m, &b, &d, l, 0, 1, s.gs, gv, gphi, next);
        } else if (moves)
            message_gradients(c, &m, &b, &d, l, 1, 0, s.gs, gv, gphi, next);
        else
            message_gradients(c, &m, &b, &d, l, 0, 0, s.gs, gv, gphi, next);
        product(rows, 3 * F, F, gphi, w.split_t, NULL, g, 0);
        bend_back(kind, rows * F, moves && l, b.z, g, d.z, h, bent, curved);
        outer(twice, 3 * F, F, gphi, h, to[2]);
        add_columns(rows, 3 * F, gphi, to[3]);
        outer(twice, F, F, g, b.s, to[0]);
        add_columns(rows, F, g, to[1]);
        if (l) {
            REAL *const old = gv;
            gv = next;
            next = old;
            product(n, F, F, g, w.dense_t, NULL, s.gs, 1);
        } else /* straight to the elements */
            product(rows, F, F, g, w.dense_t, NULL, c->gradients[0], 1);
    }
    for (integer a = 0; a < n; a++)
#pragma GCC ivdep
        for (integer f = 0; f < F; f++)
            c->gradients[0][c->species[a] * F + f] += s.gs[a * F + f];
}

FOR_SHARES(forward)
FOR_SHARES(backward)

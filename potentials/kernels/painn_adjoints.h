/* Gradients by PaiNN's weights and table, from the gradients by what a layer leaves and by its rates.
 */
#ifndef DCASE_PAINN_ADJOINTS_H
#define DCASE_PAINN_ADJOINTS_H

#include "painn_batch.h"

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

#endif

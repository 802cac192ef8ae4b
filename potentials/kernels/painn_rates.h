/* The tangent pass of PaiNN's training step: how all that the forward pass found changes along a
 * direction of the positions.
 */
#ifndef DCASE_PAINN_RATES_H
#define DCASE_PAINN_RATES_H

#include "painn_batch.h"

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

/* Rates of the whole batch along the direction of S. */
static void rates(const share *c, const measures *m, const places *s)
{
    const integer n = m->n, F = m->F, nF = n * F;
    ray *const rays = c->pairs;
    for (integer q = 0; q < m->count; q++) {
        ray *y = rays + q;
        double dr[3];
        rate_of_vector(c, q, y->p.i, y->p.j, dr);
        y->p.rate = 0;
        for (int e = 0; e < 3; e++)
            y->p.rate += dr[e] * y->p.r[e] / y->p.d;
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

#endif

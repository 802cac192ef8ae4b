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

/* Where everything of a batch is kept between the two calls; filled from one block of memory. */
typedef struct {
    REAL *own;                   /* of the elements: s, z, z_bent, phi, [elements, 6F] */
    REAL *blocks, *s;            /* s: after the last block, [2, n, F] */
    REAL *q, *q_slope;           /* read-out, [n, half] */
    REAL *gs, *gv, *gphi, *next; /* [2, n, F] and three of [2, n, 3F] */
    REAL *room;                  /* [2, n, 13F], [elements, 9F] or [5, n, half] */
} places;

static integer lay_out(const measures *m, REAL *work, places *p)
{
    const integer nF = m->n * m->F, own = 9 * m->elements * m->F, head = 5 * m->n * m->half;
    integer room = 26 * nF > own ? 26 * nF : own;
    room = room > head ? room : head;
    integer used = 0;
#define PLACE(name, count)                                                                         \
    p->name = work + used;                                                                         \
    used += (count)
    PLACE(own, 6 * m->elements * m->F);
    PLACE(blocks, m->layers * 2 * BLOCK * nF);
    PLACE(s, 2 * nF);
    PLACE(q, m->n * m->half);
    PLACE(q_slope, m->n * m->half);
    PLACE(gs, 2 * nF);
    PLACE(gv, 6 * nF);
    PLACE(gphi, 6 * nF);
    PLACE(next, 6 * nF);
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

static void take_pairs(const share *c, const measures *m)
{
    ray *const rays = c->pairs;
    for (integer q = 0; q < m->count; q++) {
        pair *p = &rays[q].p;
        p->i = c->list[q];
        p->j = c->list[m->count + q];
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
    REAL W[MOST], slope[MOST];
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
            filters_at(&rays[q].p, c->table + 3 * l * F, columns, (l ? 3 : 2) * F, W, NULL);
            send(rays + q, F, W, b.phi, l ? i : c->species[i], l ? j : c->species[j],
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
    product(n, half, F, h, out[2], NULL, s.gs, 0);
    REAL *gv = s.gv, *next = s.next;
    for (integer l = m.layers - 1; l >= 0; l--) {
        const block_weights w = weights_of(c->weights, l);
        const block b = block_at(&m, &s, l);
        update_back(&b, &w, 0, n, F, l + 1 < m.layers, s.gs, gv, s.room);
        if (l) {
            memset(s.gphi, 0, (size_t)(3 * nF) * sizeof(REAL));
            memcpy(next, gv, (size_t)(3 * nF) * sizeof(REAL));
        }
        for (integer q = 0; q < m.count; q++) {
            const integer i = rays[q].p.i, j = rays[q].p.j;
            filters_at(&rays[q].p, c->table + 3 * l * F, columns, (l ? 3 : 2) * F, W, slope);
            send_back(rays + q, F, W, slope, b.phi, l ? i : c->species[i],
                      l ? j : c->species[j], l ? b.v : NULL, s.gs, gv, s.gphi, next, 3 * F);
        }
        if (l) {
            REAL *const old = gv;
            gv = next;
            next = old;
            phi_back(&b, &w, 0, n, F, s.gphi, 3 * F, s.gs, s.room);
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

/* Rates of what send_to() adds; dphi, v and dv may be NULL, then they are zero. */
static inline __attribute__((always_inline)) void
send_rate_to(integer F, const REAL *restrict W, const REAL *restrict dW, const REAL u[3],
             const REAL du[3], const REAL *restrict phi, const REAL *restrict dphi,
             const REAL *restrict v, const REAL *restrict dv, int vectors, REAL *restrict to_s,
             REAL *restrict to_v)
{
    const REAL u0 = u[0], u1 = u[1], u2 = u[2], du0 = du[0], du1 = du[1], du2 = du[2];
#pragma GCC ivdep
    for (integer f = 0; f < F; f++) {
        const REAL along = W[F + f] * phi[F + f];
        REAL d_s = dW[f] * phi[f], d_along = dW[F + f] * phi[F + f];
        if (vectors) {
            d_s += W[f] * dphi[f];
            d_along += W[F + f] * dphi[F + f];
        }
        REAL x = d_along * u0 + along * du0, y = d_along * u1 + along * du1,
             z = d_along * u2 + along * du2;
        if (vectors) {
            const REAL keep = W[2 * F + f] * phi[2 * F + f],
                       d_keep = dW[2 * F + f] * phi[2 * F + f] + W[2 * F + f] * dphi[2 * F + f];
            x += d_keep * v[f] + keep * dv[f];
            y += d_keep * v[F + f] + keep * dv[F + f];
            z += d_keep * v[2 * F + f] + keep * dv[2 * F + f];
        }
        to_s[f] += d_s;
        to_v[f] += x;
        to_v[F + f] += y;
        to_v[2 * F + f] += z;
    }
}

/* Rates of the whole batch along the direction -gF. */
static void rates(const share *c, const measures *m, const places *s)
{
    const integer n = m->n, F = m->F, nF = n * F, columns = 3 * m->layers * F;
    ray *const rays = c->pairs;
    REAL W[MOST], dW[MOST], back[3], d_back[3];
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
        for (integer q = 0; q < m->count; q++) {
            const ray *y = rays + q;
            const integer i = y->p.i, j = y->p.j, width = (l ? 3 : 2) * F;
            const REAL rate = (REAL)y->p.rate, *v = b.v, *dv = b.v + 3 * nF;
            const REAL *from_i = b.phi + (l ? i : c->species[i]) * 3 * F,
                       *from_j = b.phi + (l ? j : c->species[j]) * 3 * F;
            REAL *s_i = joined + i * 2 * F, *s_j = joined + j * 2 * F, *v_i = turned + i * 3 * F,
                 *v_j = turned + j * 3 * F;
            filters_at(&y->p, c->table + 3 * l * F, columns, width, W, dW);
#pragma GCC ivdep
            for (integer f = 0; f < width; f++)
                dW[f] *= rate;
            opposite(y->u, back);
            opposite(y->du, d_back);
            if (l) {
                send_rate_to(F, W, dW, y->u, y->du, from_j, dphi + j * 3 * F, v + j * 3 * F,
                             dv + j * 3 * F, 1, s_i, v_i);
                send_rate_to(F, W, dW, back, d_back, from_i, dphi + i * 3 * F, v + i * 3 * F,
                             dv + i * 3 * F, 1, s_j, v_j);
            } else {
                send_rate_to(F, W, dW, y->u, y->du, from_j, NULL, NULL, NULL, 0, s_i, v_i);
                send_rate_to(F, W, dW, back, d_back, from_i, NULL, NULL, NULL, 0, s_j, v_j);
            }
        }
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

/* Of an activation with pre-activations z and rates dz behind them, [rows * F] each (moves: whether
 * there are rates): from the gradients by what comes out, g and behind them dg, those by z and dz in
 * their place; h: what comes out, and behind it its rate. */
static void bend_back(int kind, integer count, int moves, const REAL *z, REAL *g, REAL *h,
                      REAL *slope, REAL *curvature)
{
    activate(kind, NULL, count, z, h, slope, moves ? curvature : NULL);
    if (moves) {
        const REAL *dz = z + count;
        REAL *dg = g + count, *dh = h + count;
#pragma GCC ivdep
        for (integer q = 0; q < count; q++) {
            dh[q] = slope[q] * dz[q];
            g[q] = g[q] * slope[q] + dg[q] * curvature[q] * dz[q];
            dg[q] *= slope[q];
        }
    } else
#pragma GCC ivdep
        for (integer q = 0; q < count; q++)
            g[q] *= slope[q];
}

/* Of an update: to what goes into it, in the place of gs and gv (each with the gradients by the
 * rates behind it), and to its weights (5 to 9 of a block) */
static inline __attribute__((always_inline)) void
update_gradients(const measures *m, const places *s, const block *b, const block_weights *w,
                 int kind, int moves, int vectors, REAL *gs, REAL *gv, REAL *const *to)
{
    const integer n = m->n, F = m->F, nF = n * F, twice = moves ? 2 * n : n;
    REAL *const ga = s->room, *const gy = ga + 6 * nF, *const gj = gy + 2 * nF,
                *const gm = gj + 4 * nF, *const h = gm + 12 * nF; /* [2, nF], ends at 26 */
    REAL *const bent = gm, *const curved = gm + nF;
    for (integer i = 0; i < n; i++)
#pragma GCC ivdep
        for (integer f = 0; f < F; f++) {
            const integer q = i * F + f, x = i * 6 * F + f, g = i * 3 * F + f;
            const REAL up = gs[q];
            REAL by_vv = 0, by_sv = up * b->dot[q];
            if (vectors)
                for (int e = 0; e < 3; e++)
                    by_vv += gv[g + e * F] * b->mixed[x + (2 * e + 1) * F];
            if (moves) {
                const REAL d_up = gs[nF + q];
                REAL d_vv = 0;
                by_sv += d_up * b->dot[nF + q];
                if (vectors)
                    for (int e = 0; e < 3; e++) {
                        const REAL dg = gv[3 * nF + g + e * F];
                        const integer u = x + (2 * e + 1) * F;
                        by_vv += dg * b->mixed[6 * nF + u];
                        d_vv += dg * b->mixed[u];
                    }
                ga[3 * nF + g] = d_up;
                ga[3 * nF + g + F] = d_vv;
                ga[3 * nF + g + 2 * F] = d_up * b->dot[q];
            }
            ga[g] = up;
            ga[g + F] = by_vv;
            ga[g + 2 * F] = by_sv;
        }
    product(twice, 3 * F, F, ga, w->part_t, NULL, gy, 0);
    bend_back(kind, nF, moves, b->y, gy, h, bent, curved);
    outer(twice, 3 * F, F, ga, h, to[7]);
    add_columns(n, 3 * F, ga, to[8]);
    product(twice, F, 2 * F, gy, w->bend_t, NULL, gj, 0);
    outer(twice, F, 2 * F, gy, b->joined, to[5]);
    add_columns(n, F, gy, to[6]);
    for (integer i = 0; i < n; i++)
#pragma GCC ivdep
        for (integer f = 0; f < F; f++) {
            const integer q = i * F + f, j = i * 2 * F + f, x = i * 6 * F + f, g = i * 3 * F + f;
            const REAL *v = b->mixed + x, *u = v + F, *dv = v + 6 * nF, *du = u + 6 * nF;
            REAL *gmv = gm + x, *gmu = gmv + F, *dgmv = gmv + 6 * nF, *dgmu = gmu + 6 * nF;
            const REAL sv = b->a[g + 2 * F], vv = b->a[g + F], one = 1 / b->joined[j + F];
            REAL by_dot = gs[q] * sv, by_length = gj[j + F] * one;
            if (moves) {
                const REAL d_sv = b->a[3 * nF + g + 2 * F], d_vv = b->a[3 * nF + g + F],
                           d_length = b->joined[2 * nF + j + F];
                const REAL d_by_dot = gs[nF + q] * sv, d_by_length = gj[2 * nF + j + F] * one;
                by_dot += gs[nF + q] * d_sv;
                by_length -= d_by_length * d_length * one;
                for (int e = 0; e < 3; e++) {
                    const integer k = 2 * e * F;
                    gmv[k] = by_dot * u[k] + d_by_dot * du[k] + by_length * v[k] +
                             d_by_length * dv[k];
                    dgmv[k] = d_by_dot * u[k] + d_by_length * v[k];
                    gmu[k] = by_dot * v[k] + d_by_dot * dv[k];
                    dgmu[k] = d_by_dot * v[k];
                    if (vectors) {
                        const REAL up = gv[g + e * F], d_up = gv[3 * nF + g + e * F];
                        gmu[k] += up * vv + d_up * d_vv;
                        dgmu[k] += d_up * vv;
                    }
                }
                gs[nF + q] += gj[2 * nF + j];
            } else
                for (int e = 0; e < 3; e++) {
                    const integer k = 2 * e * F;
                    gmv[k] = by_dot * u[k] + by_length * v[k];
                    gmu[k] = by_dot * v[k] + (vectors ? gv[g + e * F] * vv : 0);
                }
            gs[q] += gj[j];
        }
    outer(3 * twice, 2 * F, F, gm, b->turned, to[4]);
    product(3 * twice, 2 * F, F, gm, w->mix_t, NULL, gv, vectors);
}

/* Gradients of one direction; send_to() and send_rate_to() backwards. g..: by what the receiver gets,
 * to_..: by what the sender has, added to; d: by the rates. */
static inline __attribute__((always_inline)) void
gradients_to(integer F, const REAL *restrict W, const REAL *restrict dW, const REAL u[3],
             const REAL du[3], const REAL *restrict phi, const REAL *restrict dphi,
             const REAL *restrict v, const REAL *restrict dv, int moves, int vectors,
             const REAL *restrict gs, const REAL *restrict dgs, const REAL *restrict gv,
             const REAL *restrict dgv, REAL *restrict to_phi, REAL *restrict to_dphi,
             REAL *restrict to_v, REAL *restrict to_dv, REAL *restrict gW, REAL *restrict gdW)
{
    const REAL u0 = u[0], u1 = u[1], u2 = u[2];
#pragma GCC ivdep
    for (integer f = 0; f < F; f++) {
        const REAL x = gv[f], y = gv[F + f], z = gv[2 * F + f];
        REAL by_along = x * u0 + y * u1 + z * u2, dx = 0, dy = 0, dz = 0, d_s = 0, d_along = 0;
        if (moves) {
            dx = dgv[f], dy = dgv[F + f], dz = dgv[2 * F + f];
            d_s = dgs[f];
            by_along += dx * du[0] + dy * du[1] + dz * du[2];
            d_along = dx * u0 + dy * u1 + dz * u2;
        }
        REAL gW_s = gs[f] * phi[f], gW_along = by_along * phi[F + f];
        to_phi[f] += gs[f] * W[f] + (moves ? d_s * dW[f] : 0);
        to_phi[F + f] += by_along * W[F + f] + (moves ? d_along * dW[F + f] : 0);
        if (moves) {
            gdW[f] += d_s * phi[f];
            gdW[F + f] += d_along * phi[F + f];
            if (vectors) {
                gW_s += d_s * dphi[f];
                gW_along += d_along * dphi[F + f];
                to_dphi[f] += d_s * W[f];
                to_dphi[F + f] += d_along * W[F + f];
            }
        }
        gW[f] += gW_s;
        gW[F + f] += gW_along;
        if (vectors) {
            const REAL w = W[2 * F + f], p = phi[2 * F + f], keep = w * p;
            REAL by_keep = x * v[f] + y * v[F + f] + z * v[2 * F + f];
            if (moves) {
                const REAL dw = dW[2 * F + f], dp = dphi[2 * F + f], d_keep = dw * p + w * dp;
                const REAL d_by = dx * v[f] + dy * v[F + f] + dz * v[2 * F + f];
                by_keep += dx * dv[f] + dy * dv[F + f] + dz * dv[2 * F + f];
                gW[2 * F + f] += by_keep * p + d_by * dp;
                gdW[2 * F + f] += d_by * p;
                to_phi[2 * F + f] += by_keep * w + d_by * dw;
                to_dphi[2 * F + f] += d_by * w;
                to_v[f] += x * keep + dx * d_keep;
                to_v[F + f] += y * keep + dy * d_keep;
                to_v[2 * F + f] += z * keep + dz * d_keep;
                to_dv[f] += dx * keep;
                to_dv[F + f] += dy * keep;
                to_dv[2 * F + f] += dz * keep;
            } else {
                gW[2 * F + f] += by_keep * p;
                to_phi[2 * F + f] += by_keep * w;
                to_v[f] += x * keep;
                to_v[F + f] += y * keep;
                to_v[2 * F + f] += z * keep;
            }
        }
    }
}

/* table_gradient += the rows of a pair, from the gradients by W and dW = rate W' */
static void table_back(const pair *p, REAL *table_gradient, integer columns, integer width,
                       int moves, const REAL *restrict gW, const REAL *restrict gdW)
{
    for (int k = 0; k < 4; k++) {
        REAL *restrict to = table_gradient + (p->row + k) * columns;
        const REAL value = p->value[k], slope = (REAL)p->rate * p->slope[k];
        if (moves)
#pragma GCC ivdep
            for (integer f = 0; f < width; f++)
                to[f] += value * gW[f] + slope * gdW[f];
        else
#pragma GCC ivdep
            for (integer f = 0; f < width; f++)
                to[f] += value * gW[f];
    }
}

/* Of all messages of a block, from gs and gv, gradients by the senders' phi (of the first block: of
 * their elements) and by v, added to */
static inline __attribute__((always_inline)) void
message_gradients(const share *c, const measures *m, const block *b, integer l, int moves,
                  int vectors, const REAL *gs, const REAL *gv, REAL *to_phi, REAL *to_v)
{
    const integer F = m->F, nF = m->n * F, columns = 3 * m->layers * F, width = (vectors ? 3 : 2) * F;
    ray *const rays = c->pairs;
    REAL W[MOST], dW[MOST], gW[MOST], gdW[MOST];
    for (integer q = 0; q < m->count; q++) {
        const ray *y = rays + q;
        filters_at(&y->p, c->table + 3 * l * F, columns, width, W, moves ? dW : NULL);
#pragma GCC ivdep
        for (integer f = 0; f < width && moves; f++)
            dW[f] *= (REAL)y->p.rate;
        memset(gW, 0, (size_t)width * sizeof(REAL));
        memset(gdW, 0, (size_t)width * sizeof(REAL));
        for (int way = 0; way < 2; way++) {
            const integer to = way ? y->p.j : y->p.i, from = way ? y->p.i : y->p.j,
                          row = vectors ? from : c->species[from];
            REAL u[3], du[3];
            for (int e = 0; e < 3; e++) {
                u[e] = way ? -y->u[e] : y->u[e];
                du[e] = way ? -y->du[e] : y->du[e];
            }
            const REAL *phi = b->phi + row * 3 * F, *v = b->v + from * 3 * F;
            gradients_to(F, W, dW, u, du, phi, phi + 3 * nF, v, v + 3 * nF, moves, vectors,
                         gs + to * F, gs + nF + to * F, gv + to * 3 * F,
                         gv + 3 * nF + to * 3 * F, to_phi + row * 3 * F,
                         to_phi + 3 * nF + row * 3 * F, to_v + from * 3 * F,
                         to_v + 3 * nF + from * 3 * F, gW, gdW);
        }
        table_back(&y->p, c->table_gradient + 3 * l * F, columns, width, moves, gW, gdW);
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
    product(moves ? 2 * n : n, half, F, g, out[2], NULL, s->gs, 0);
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
        REAL *const *to = c->gradients + 1 + 9 * l;
        const integer rows = l ? n : m.elements, twice = moves && l ? 2 * n : rows;
        if (l + 1 < m.layers) {
            if (moves)
                update_gradients(&m, &s, &b, &w, kind, 1, 1, s.gs, gv, to);
            else
                update_gradients(&m, &s, &b, &w, kind, 0, 1, s.gs, gv, to);
        } else if (moves)
            update_gradients(&m, &s, &b, &w, kind, 1, 0, s.gs, gv, to);
        else
            update_gradients(&m, &s, &b, &w, kind, 0, 0, s.gs, gv, to);
        REAL *gphi = l ? s.gphi : s.room, *const g = l ? s.room : s.room + 3 * rows * F,
             *const h = g + 2 * rows * F, *const bent = h + 2 * rows * F,
             *const curved = bent + rows * F;
        memset(gphi, 0, (size_t)(3 * twice * F) * sizeof(REAL));
        if (l) {
            memcpy(next, gv, (size_t)(3 * twice * F) * sizeof(REAL));
            if (moves)
                message_gradients(c, &m, &b, l, 1, 1, s.gs, gv, gphi, next);
            else
                message_gradients(c, &m, &b, l, 0, 1, s.gs, gv, gphi, next);
        } else if (moves)
            message_gradients(c, &m, &b, l, 1, 0, s.gs, gv, gphi, next);
        else
            message_gradients(c, &m, &b, l, 0, 0, s.gs, gv, gphi, next);
        product(twice, 3 * F, F, gphi, w.split_t, NULL, g, 0);
        bend_back(kind, rows * F, moves && l, b.z, g, h, bent, curved);
        outer(twice, 3 * F, F, gphi, h, to[2]);
        add_columns(rows, 3 * F, gphi, to[3]);
        outer(twice, F, F, g, b.s, to[0]);
        add_columns(rows, F, g, to[1]);
        if (l) {
            REAL *const old = gv;
            gv = next;
            next = old;
            product(twice, F, F, g, w.dense_t, NULL, s.gs, 1);
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

/* PaiNN with tabulated filters for training: energies and forces of a batch, and the gradient of
 *
 *     S = sum_i gE_i e_i + sum_i gF_i . F_i + sum_p gr_p . dE/dr_p
 *
 * by all weights and by the table, for given gE, gF and gr (of pairs p); see schnet_train.c.
 * What the first block's atoms send depends on their elements only, and is computed for these.
 */
#include "painn_adjoints.h"
#include "painn_rates.h"

integer size_of_pair(void) { return (integer)sizeof(ray); }

/* Number of REALs that a batch needs. */
integer size_of_work(const integer *sizes)
{
    const measures m = measures_of(sizes);
    places p;
    return lay_out(&m, NULL, &p);
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
            if (c->pull)
                c->pull[3 * q + e] = g[e];
        }
    }
}

/* After forward() with the same arguments and untouched work and pairs. gE [n]: gradient by the
 * atom energies; gF [n, 3]: by the forces, or NULL; gr [pairs, 3]: by the pulls, or NULL.
 * gradients: of the weights that are no copies, in torch's order [out, in], added to.
 * table_gradient [intervals + 3, layers, 3F], added to. */
static void backward(const share *c)
{
    const measures m = measures_of(c->sizes);
    const integer n = m.n, F = m.F;
    const int moves = has_direction(c), kind = (int)c->kind;
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

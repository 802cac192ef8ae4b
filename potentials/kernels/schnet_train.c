/* SchNet with tabulated filters for training: energies and forces of a batch, and the gradient of
 *
 *     S = sum_i gE_i e_i + sum_i gF_i . F_i + sum_p gr_p . dE/dr_p
 *
 * by all weights and by the table, for given gE, gF and gr (of pairs p). Since F = -dE/dx, the
 * second and the third sum are the derivative of E along one direction of the pairs' vectors, r_ij
 * by gF_i - gF_j + gr_ij, so a forward pass carries every quantity q and its derivative dq along
 * that direction, and one backward pass goes through both.
 * Half of what autograd does for the gradient of a gradient is never formed.
 */
#include "schnet_common.h"
#include "training_share.h"

integer size_of_pair(void) { return (integer)sizeof(pair); }

/* Where everything of a batch is kept between the two calls; filled from one block of memory. */
typedef struct {
    REAL *h, *x, *m, *u, *slope;      /* of every layer: [(layers + 1) n hidden], [layers n ...] */
    REAL *dh, *dx, *dm, *du;          /* along the direction */
    REAL *q, *q_slope;                /* read-out, [n half] */
    REAL *a, *b, *c, *d, *e, *f, *g;  /* scratch, [n wide] */
} places;

static integer lay_out(const integer *sizes, REAL *work, places *p)
{
    const integer n = sizes[0], hidden = sizes[2], filters = sizes[3], layers = sizes[4],
                  half = sizes[5];
    const integer wide = hidden > filters ? (hidden > half ? hidden : half)
                                          : (filters > half ? filters : half);
    integer used = 0;
#define PLACE(name, count)                                                                         \
    p->name = work + used;                                                                         \
    used += (count)
    PLACE(h, (layers + 1) * n * hidden);
    PLACE(dh, (layers + 1) * n * hidden);
    PLACE(x, layers * n * filters);
    PLACE(dx, layers * n * filters);
    PLACE(m, layers * n * filters);
    PLACE(dm, layers * n * filters);
    PLACE(u, layers * n * hidden);
    PLACE(du, layers * n * hidden);
    PLACE(slope, layers * n * hidden);
    PLACE(q, n * half);
    PLACE(q_slope, n * half);
    PLACE(a, n * wide);
    PLACE(b, n * wide);
    PLACE(c, n * wide);
    PLACE(d, n * wide);
    PLACE(e, n * wide);
    PLACE(f, n * wide);
    PLACE(g, n * wide);
#undef PLACE
    return used;
}

/* Number of REALs that a batch needs. */
integer size_of_work(const integer *sizes)
{
    places p;
    return lay_out(sizes, NULL, &p);
}

static void forward(const share *c)
{
    const integer *sizes = c->sizes, *species = c->species;
    const REAL *const *weights = c->weights;
    const REAL *restrict table = c->table;
    pair *const pairs = c->pairs;
    double *const energy = c->energy, *const force = c->force, *const pulls = c->pull;
    const integer n = sizes[0], count = sizes[1], hidden = sizes[2], filters = sizes[3],
                  layers = sizes[4], half = sizes[5], intervals = sizes[6];
    const integer nh = n * hidden, nf = n * filters, columns = layers * filters;
    places s;
    lay_out(sizes, c->work, &s);
    for (integer q = 0; q < count; q++) {
        pair *p = pairs + q;
        take_pair(c, q, p);
        p->pull = 0;
        locate(p, intervals, c->spacing);
    }
    for (integer a = 0; a < n; a++)
        memcpy(s.h + a * hidden, weights[0] + species[a] * hidden, (size_t)hidden * sizeof(REAL));
    for (integer l = 0; l < layers; l++) {
        const REAL *const *w = weights + 1 + 8 * l;
        REAL *h = s.h + l * nh, *x = s.x + l * nf, *m = s.m + l * nf, *u = s.u + l * nh;
        product(n, hidden, filters, h, w[0], NULL, x, 0);
        memset(m, 0, (size_t)nf * sizeof(REAL));
        for (integer q = 0; q < count; q++)
            convolve(pairs + q, table + l * filters, columns, filters, x, m);
        product(n, filters, hidden, m, w[1], w[2], u, 0);
        activate((int)c->kind, NULL, nh, u, s.a, s.slope + l * nh, NULL);
        memcpy(h + nh, h, (size_t)nh * sizeof(REAL));
        product(n, hidden, hidden, s.a, w[3], w[4], h + nh, 1);
    }
    const REAL *const *out = weights + 1 + 8 * layers;
    product(n, hidden, half, s.h + layers * nh, out[0], out[1], s.q, 0);
    activate((int)c->kind, NULL, n * half, s.q, s.a, s.q_slope, NULL);
    for (integer a = 0; a < n; a++) {
        double sum = (double)out[4][0];
        for (integer q = 0; q < half; q++)
            sum += (double)(s.a[a * half + q] * out[3][q]);
        energy[a] = sum;
    }
    if (!force)
        return;

    for (integer a = 0; a < n; a++)
        for (integer q = 0; q < half; q++)
            s.a[a * half + q] = s.q_slope[a * half + q] * out[3][q];
    REAL *g = s.b, *u = s.c, *message = s.d, *y = s.e;
    product(n, half, hidden, s.a, out[2], NULL, g, 0);
    for (integer l = layers - 1; l >= 0; l--) {
        const REAL *const *w = weights + 1 + 8 * l;
        product(n, hidden, hidden, g, w[7], NULL, u, 0);
        for (integer q = 0; q < nh; q++)
            u[q] *= s.slope[l * nh + q];
        product(n, hidden, filters, u, w[6], NULL, message, 0);
        memset(y, 0, (size_t)nf * sizeof(REAL));
        for (integer q = 0; q < count; q++)
            transpose(pairs + q, table + l * filters, columns, filters, s.x + l * nf, message, y);
        if (l > 0)
            product(n, filters, hidden, y, w[5], NULL, g, 1);
    }
    memset(force, 0, (size_t)(3 * n) * sizeof(double));
    for (integer q = 0; q < count; q++)
        for (int c = 0; c < 3; c++) {
            const double pull = pairs[q].pull / pairs[q].d * pairs[q].r[c];
            force[3 * pairs[q].i + c] += pull;
            force[3 * pairs[q].j + c] -= pull;
            if (pulls)
                pulls[3 * q + c] = pull;
        }
}

/* dm[i] += dW x[j] + W dx[j], and the same with i and j exchanged */
static void convolve_rate(const pair *p, const REAL *restrict table, integer columns,
                          integer filters, const REAL *restrict x, const REAL *restrict dx,
                          REAL *dm)
{
    const REAL *t0 = table + p->row * columns, *t1 = t0 + columns, *t2 = t1 + columns,
               *t3 = t2 + columns;
    const REAL b0 = p->value[0], b1 = p->value[1], b2 = p->value[2], b3 = p->value[3];
    const REAL rate = (REAL)p->rate;
    const REAL s0 = rate * p->slope[0], s1 = rate * p->slope[1], s2 = rate * p->slope[2],
               s3 = rate * p->slope[3];
    const REAL *xi = x + p->i * filters, *xj = x + p->j * filters;
    const REAL *dxi = dx + p->i * filters, *dxj = dx + p->j * filters;
    REAL *mi = dm + p->i * filters, *mj = dm + p->j * filters;
#define BOTH                                                                                       \
    for (integer f = 0; f < filters; f++) {                                                        \
        const REAL W = b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f];                          \
        const REAL dW = s0 * t0[f] + s1 * t1[f] + s2 * t2[f] + s3 * t3[f];                         \
        mi[f] += dW * xj[f] + W * dxj[f];                                                          \
        mj[f] += dW * xi[f] + W * dxi[f];                                                          \
    }
    if (p->i == p->j) { /* one place, written twice: not to be vectorised */
        BOTH
    } else {
#pragma GCC ivdep
        BOTH
    }
#undef BOTH
}

/* Gradients of the table's rows and of x, dx, from those of m and dm (gm, gdm). */
static void convolve_back(const pair *p, const REAL *restrict table, REAL *restrict table_gradient,
                          integer columns, integer filters, const REAL *restrict x,
                          const REAL *restrict dx, const REAL *restrict gm,
                          const REAL *restrict gdm, REAL *gx, REAL *gdx)
{
    const integer at = p->row * columns;
    const REAL *t0 = table + at, *t1 = t0 + columns, *t2 = t1 + columns, *t3 = t2 + columns;
    REAL *o0 = table_gradient + at, *o1 = o0 + columns, *o2 = o1 + columns, *o3 = o2 + columns;
    const REAL b0 = p->value[0], b1 = p->value[1], b2 = p->value[2], b3 = p->value[3];
    const REAL rate = (REAL)p->rate;
    const REAL s0 = rate * p->slope[0], s1 = rate * p->slope[1], s2 = rate * p->slope[2],
               s3 = rate * p->slope[3];
    const integer i = p->i * filters, j = p->j * filters;
    const REAL *xi = x + i, *xj = x + j, *dxi = dx + i, *dxj = dx + j;
    const REAL *gmi = gm + i, *gmj = gm + j, *gdmi = gdm + i, *gdmj = gdm + j;
    REAL *gxi = gx + i, *gxj = gx + j, *gdxi = gdx + i, *gdxj = gdx + j;
#define BOTH                                                                                       \
    for (integer f = 0; f < filters; f++) {                                                        \
        const REAL W = b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f];                          \
        const REAL dW = s0 * t0[f] + s1 * t1[f] + s2 * t2[f] + s3 * t3[f];                         \
        const REAL gdW = gdmi[f] * xj[f] + gdmj[f] * xi[f];                                        \
        const REAL gW = gmi[f] * xj[f] + gmj[f] * xi[f] + gdmi[f] * dxj[f] + gdmj[f] * dxi[f];     \
        o0[f] += b0 * gW + s0 * gdW;                                                               \
        o1[f] += b1 * gW + s1 * gdW;                                                               \
        o2[f] += b2 * gW + s2 * gdW;                                                               \
        o3[f] += b3 * gW + s3 * gdW;                                                               \
        gxi[f] += W * gmj[f] + dW * gdmj[f];                                                       \
        gxj[f] += W * gmi[f] + dW * gdmi[f];                                                       \
        gdxi[f] += W * gdmj[f];                                                                    \
        gdxj[f] += W * gdmi[f];                                                                    \
    }
    if (p->i == p->j) {
        BOTH
    } else {
#pragma GCC ivdep
        BOTH
    }
#undef BOTH
}

/* The same without a direction. */
static void convolve_back_energy(const pair *p, const REAL *restrict table,
                                 REAL *restrict table_gradient, integer columns, integer filters,
                                 const REAL *restrict x, const REAL *restrict gm, REAL *gx)
{
    const integer at = p->row * columns;
    const REAL *t0 = table + at, *t1 = t0 + columns, *t2 = t1 + columns, *t3 = t2 + columns;
    REAL *o0 = table_gradient + at, *o1 = o0 + columns, *o2 = o1 + columns, *o3 = o2 + columns;
    const REAL b0 = p->value[0], b1 = p->value[1], b2 = p->value[2], b3 = p->value[3];
    const integer i = p->i * filters, j = p->j * filters;
    const REAL *xi = x + i, *xj = x + j, *gmi = gm + i, *gmj = gm + j;
    REAL *gxi = gx + i, *gxj = gx + j;
#define BOTH                                                                                       \
    for (integer f = 0; f < filters; f++) {                                                        \
        const REAL W = b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f];                          \
        const REAL gW = gmi[f] * xj[f] + gmj[f] * xi[f];                                           \
        o0[f] += b0 * gW;                                                                          \
        o1[f] += b1 * gW;                                                                          \
        o2[f] += b2 * gW;                                                                          \
        o3[f] += b3 * gW;                                                                          \
        gxi[f] += W * gmj[f];                                                                      \
        gxj[f] += W * gmi[f];                                                                      \
    }
    if (p->i == p->j) {
        BOTH
    } else {
#pragma GCC ivdep
        BOTH
    }
#undef BOTH
}

/* After forward() with the same arguments and untouched work and pairs. gE [n]: gradient by the
 * atom energies; gF [n, 3]: by the forces, or NULL; gr [pairs, 3]: by the pulls, or NULL. gradients:
 * arrays in the shape of the first of every kind of weight, in the order embedding; for each layer
 * atom_in, atom_out, its bias, update, its bias; out_in, its bias, out, bias; added to.
 * table_gradient [intervals + 3, layers, filters], added to. */
static void backward(const share *c)
{
    const integer *sizes = c->sizes, *species = c->species;
    const REAL *const *weights = c->weights;
    const REAL *restrict table = c->table;
    pair *const pairs = c->pairs;
    const double *const gE = c->gE;
    const int moves = has_direction(c);
    REAL *const *const gradients = c->gradients;
    REAL *restrict table_gradient = c->table_gradient;
    const integer n = sizes[0], count = sizes[1], hidden = sizes[2], filters = sizes[3],
                  layers = sizes[4], half = sizes[5];
    const integer nh = n * hidden, nf = n * filters, nq = n * half, columns = layers * filters;
    const REAL *const *out = weights + 1 + 8 * layers;
    REAL *const *to_out = gradients + 1 + 5 * layers;
    places s;
    lay_out(sizes, c->work, &s);

    /* Forward along the direction of S. */
    if (moves) {
        for (integer q = 0; q < count; q++) {
            pair *p = pairs + q;
            double dr[3];
            rate_of_vector(c, q, p->i, p->j, dr);
            p->rate = 0;
            for (int e = 0; e < 3; e++)
                p->rate += dr[e] * p->r[e] / p->d;
        }
        memset(s.dh, 0, (size_t)nh * sizeof(REAL));
        for (integer l = 0; l < layers; l++) {
            const REAL *const *w = weights + 1 + 8 * l;
            REAL *dh = s.dh + l * nh, *dx = s.dx + l * nf, *dm = s.dm + l * nf, *du = s.du + l * nh;
            if (l > 0)
                product(n, hidden, filters, dh, w[0], NULL, dx, 0);
            else
                memset(dx, 0, (size_t)nf * sizeof(REAL));
            memset(dm, 0, (size_t)nf * sizeof(REAL));
            for (integer q = 0; q < count; q++)
                convolve_rate(pairs + q, table + l * filters, columns, filters, s.x + l * nf, dx,
                              dm);
            product(n, filters, hidden, dm, w[1], NULL, du, 0);
            for (integer q = 0; q < nh; q++)
                s.a[q] = s.slope[l * nh + q] * du[q];
            memcpy(dh + nh, dh, (size_t)nh * sizeof(REAL));
            product(n, hidden, hidden, s.a, w[3], NULL, dh + nh, 1);
        }
    }

    /* Read-out: e = o . phi(q), de = o . (phi' dq) */
    REAL *dq = s.c, *curvature = s.b, *gq = s.d, *gdq = s.e, *activated = s.a;
    activate((int)c->kind, NULL, nq, s.q, activated, s.q_slope, curvature);
    if (moves)
        product(n, hidden, half, s.dh + layers * nh, out[0], NULL, dq, 0);
    for (integer a = 0; a < n; a++) {
        to_out[3][0] += (REAL)gE[a];
        for (integer c = 0; c < half; c++) {
            const integer q = a * half + c;
            const REAL o = out[3][c], e = (REAL)gE[a];
            gq[q] = s.q_slope[q] * e * o;
            to_out[2][c] += e * activated[q];
            if (moves) {
                gdq[q] = s.q_slope[q] * o;
                gq[q] += curvature[q] * dq[q] * o;
                to_out[2][c] += s.q_slope[q] * dq[q];
            }
        }
    }
    outer(n, hidden, half, s.h + layers * nh, gq, to_out[0]);
    add_columns(n, half, gq, to_out[1]);
    REAL *gh = s.f, *gdh = s.g;
    product(n, half, hidden, gq, out[2], NULL, gh, 0);
    if (moves) {
        outer(n, hidden, half, s.dh + layers * nh, gdq, to_out[0]);
        product(n, half, hidden, gdq, out[2], NULL, gdh, 0);
    }

    for (integer l = layers - 1; l >= 0; l--) {
        const REAL *const *w = weights + 1 + 8 * l;
        REAL *const *to = gradients + 1 + 5 * l;
        const REAL *h = s.h + l * nh, *x = s.x + l * nf, *m = s.m + l * nf, *u = s.u + l * nh;
        const REAL *dh = s.dh + l * nh, *dx = s.dx + l * nf, *dm = s.dm + l * nf,
                   *du = s.du + l * nh;
        REAL *slope = s.slope + l * nh;
        activate((int)c->kind, NULL, nh, u, s.a, slope, s.b); /* a: phi(u), b: phi''(u) */
        outer(n, hidden, hidden, s.a, gh, to[3]);
        add_columns(n, hidden, gh, to[4]);
        product(n, hidden, hidden, gh, w[7], NULL, s.c, 0); /* c: gradient of phi(u), then of u */
        for (integer q = 0; q < nh; q++)
            s.c[q] *= slope[q];
        if (moves) {
            for (integer q = 0; q < nh; q++)
                s.a[q] = slope[q] * du[q];
            outer(n, hidden, hidden, s.a, gdh, to[3]);
            product(n, hidden, hidden, gdh, w[7], NULL, s.d, 0);
            for (integer q = 0; q < nh; q++) {
                s.c[q] += s.b[q] * du[q] * s.d[q];
                s.d[q] *= slope[q]; /* d: gradient of du */
            }
        }
        outer(n, filters, hidden, m, s.c, to[1]);
        add_columns(n, hidden, s.c, to[2]);
        product(n, hidden, filters, s.c, w[6], NULL, s.a, 0); /* a: gradient of m */
        memset(s.c, 0, (size_t)nf * sizeof(REAL));            /* c: gradient of x */
        if (moves) {
            outer(n, filters, hidden, dm, s.d, to[1]);
            product(n, hidden, filters, s.d, w[6], NULL, s.b, 0); /* b: gradient of dm */
            memset(s.e, 0, (size_t)nf * sizeof(REAL));            /* e: gradient of dx */
            for (integer q = 0; q < count; q++)
                convolve_back(pairs + q, table + l * filters, table_gradient + l * filters, columns,
                              filters, x, dx, s.a, s.b, s.c, s.e);
            outer(n, hidden, filters, dh, s.e, to[0]);
            product(n, filters, hidden, s.e, w[5], NULL, gdh, 1);
        } else {
            for (integer q = 0; q < count; q++)
                convolve_back_energy(pairs + q, table + l * filters, table_gradient + l * filters,
                                     columns, filters, x, s.a, s.c);
        }
        outer(n, hidden, filters, h, s.c, to[0]);
        product(n, filters, hidden, s.c, w[5], NULL, gh, 1);
    }
    for (integer a = 0; a < n; a++)
        for (integer c = 0; c < hidden; c++)
            gradients[0][species[a] * hidden + c] += gh[a * hidden + c];
}

FOR_SHARES(forward)
FOR_SHARES(backward)

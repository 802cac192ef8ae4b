/* The other instructions of edge_network.c. NAME_back() is NAME()'s gradient. */
#ifndef DCASE_EDGE_LAYERS_H
#define DCASE_EDGE_LAYERS_H

#include "edge_network.h"

static void elements(const evaluation *c, const step *s)
{
    for (integer a = 0; a < c->atoms; a++)
        memcpy(SLOT(s->dst) + a * s->m, s->w[0] + c->species[a] * s->m,
               (size_t)s->m * sizeof(REAL));
}

static void energy(const evaluation *c, const step *s)
{
    const REAL *x = SLOT(s->src[0]);
    for (integer a = 0; a < c->atoms; a++) {
        double total = s->w[1] ? (double)s->w[1][0] : 0;
        for (integer q = 0; q < s->k; q++)
            total += (double)(x[a * s->k + q] * s->w[0][q]);
        c->energy[a] += total;
    }
}

static void energy_back(const evaluation *c, const step *s)
{
    REAL *g = SLOT(s->gsrc[0]);
    for (integer a = 0; g && a < c->atoms; a++)
        for (integer q = 0; q < s->k; q++)
            g[a * s->k + q] = (s->add[0] ? g[a * s->k + q] : 0) + s->w[0][q];
}

/* dst[atom] = tanh(sum over its pairs of src0[pair]), one column */
static void count(const evaluation *c, integer P, const step *s)
{
    const REAL *w = SLOT(s->src[0]);
    REAL *y = SLOT(s->dst), *slope = SLOT(s->aux[0]);
    memset(y, 0, (size_t)c->atoms * sizeof(REAL));
    for (integer p = 0; p < P; p++) {
        y[c->pairs[p].i] += w[p];
        y[c->pairs[p].j] += w[p];
    }
    for (integer a = 0; a < c->atoms; a++) {
        y[a] = (REAL)tanh((double)y[a]);
        slope[a] = 1 - y[a] * y[a];
    }
}

static void count_back(const evaluation *c, integer P, const step *s)
{
    const REAL *g = SLOT(s->gdst), *slope = SLOT(s->aux[0]);
    REAL *gw = SLOT(s->gsrc[0]);
    for (integer p = 0; gw && p < P; p++) {
        const integer i = c->pairs[p].i, j = c->pairs[p].j;
        gw[p] = (s->add[0] ? gw[p] : 0) + g[i] * slope[i] + g[j] * slope[j];
    }
}

/* dst[row] = src0[row] src1[row], src1 of one column */
static void scale_rows(const evaluation *c, integer P, const step *s)
{
    const integer m = s->m, n = rows_of(c, P, s->dst);
    const REAL *x = SLOT(s->src[0]), *by = SLOT(s->src[1]);
    REAL *restrict y = SLOT(s->dst);
    for (integer i = 0; i < n; i++)
        for (integer q = i * m; q < (i + 1) * m; q++)
            y[q] = x[q] * by[i];
}

static void scale_rows_back(const evaluation *c, integer P, const step *s)
{
    const integer m = s->m, n = rows_of(c, P, s->dst);
    const REAL *x = SLOT(s->src[0]), *by = SLOT(s->src[1]), *g = SLOT(s->gdst);
    REAL *restrict gx = SLOT(s->gsrc[0]), *restrict gby = SLOT(s->gsrc[1]);
    for (integer i = 0; i < n; i++) {
        REAL total = 0;
        for (integer q = i * m; q < (i + 1) * m; q++) {
            total += g[q] * x[q];
            if (gx)
                gx[q] = (s->add[0] ? gx[q] : 0) + g[q] * by[i];
        }
        if (gby)
            gby[i] = (s->add[1] ? gby[i] : 0) + total;
    }
}

static void sigmoid(integer n, REAL *restrict x)
{
    for (integer q = 0; q < n; q++) {
        const REAL t = EXP(x[q] > 0 ? -x[q] : x[q]);
        x[q] = (x[q] > 0 ? 1 : t) / (1 + t);
    }
}

/* CGCNN: dst[i] = sum over j of src2's last column sigmoid(z') act(z''),
 *          (z', z'') = src0[i, : 2m] + src0[j, 2m :] + src1[pair] */
static void gate(const evaluation *c, integer P, const step *s)
{
    const integer m = s->m;
    const REAL *atoms = SLOT(s->src[0]), *own = SLOT(s->src[1]), *envelope = SLOT(s->src[2]);
    REAL *y = SLOT(s->dst), *slopes = SLOT(s->aux[0]), *gated = SLOT(s->aux[1]),
         *lifts = SLOT(s->aux[2]);
    memset(y, 0, (size_t)(c->atoms * m) * sizeof(REAL));
    for (integer i = 0; i < 2 * P; i += CHUNK) {
        const integer rows = 2 * P - i < CHUNK ? 2 * P - i : CHUNK;
        REAL *const z1 = c->scratch, *const z2 = z1 + rows * m, *const core = z2 + rows * m,
                    *const slope = core + rows * m, *const lift = slope + rows * m,
                    *const share = lift + rows * m;
        for (integer r = 0; r < rows; r++) {
            const integer e = i + r;
            const REAL *a = atoms + TARGET(e) * 4 * m, *b = atoms + SOURCE(e) * 4 * m + 2 * m,
                       *o = own + PAIR(e) * 2 * m;
            REAL *restrict to1 = z1 + r * m, *restrict to2 = z2 + r * m;
            for (integer q = 0; q < m; q++) {
                to1[q] = a[q] + b[q] + o[q];
                to2[q] = a[m + q] + b[m + q] + o[m + q];
            }
        }
        bend_rows(&s->act, rows, m, z2, core, slope, lift, share);
        sigmoid(rows * m, z1);
        for (integer r = 0; r < rows; r++) {
            const integer e = i + r;
            const REAL weight = envelope[PAIR(e)], *restrict sigma = z1 + r * m,
                       *restrict act = core + r * m, *restrict rate = slope + r * m;
            REAL *restrict g = gated + e * m, *restrict s1 = slopes + e * 2 * m,
                 *restrict to = y + TARGET(e) * m;
            for (integer q = 0; q < m; q++) {
                g[q] = sigma[q] * act[q];
                s1[q] = g[q] * (1 - sigma[q]);
                s1[m + q] = sigma[q] * rate[q];
                to[q] += weight * g[q];
            }
            if (s->act.sized) /* the gradient through the size, see unbend_rows() */
                for (integer q = 0; q < m; q++) {
                    lifts[e * 2 * m + q] = sigma[q] * lift[r * m + q];
                    lifts[e * 2 * m + m + q] = share[r * m + q];
                }
        }
    }
}

static void gate_back(const evaluation *c, integer P, const step *s)
{
    const integer m = s->m;
    const REAL *envelope = SLOT(s->src[2]), *slopes = SLOT(s->aux[0]), *gated = SLOT(s->aux[1]),
               *lifts = SLOT(s->aux[2]), *g = SLOT(s->gdst);
    REAL *gatoms = gradient(c, P, s, 0, 0), *gown = gradient(c, P, s, 1, 0),
         *genvelope = gradient(c, P, s, 2, 0);
    for (integer e = 0; e < 2 * P; e++) {
        const integer p = PAIR(e);
        const REAL weight = envelope[p], *restrict from = g + TARGET(e) * m,
                   *restrict slope = slopes + e * 2 * m, *restrict y = gated + e * m;
        REAL *restrict gz = c->scratch, total = 0;
        for (integer q = 0; q < m; q++) {
            total += from[q] * y[q];
            const REAL h = weight * from[q];
            gz[q] = h * slope[q];
            gz[m + q] = h * slope[m + q];
        }
        if (s->act.sized) {
            const REAL *restrict lift = lifts + e * 2 * m;
            REAL part = 0;
            for (integer q = 0; q < m; q++)
                part += weight * from[q] * lift[q];
            for (integer q = 0; q < m; q++)
                gz[m + q] += part * lift[m + q];
        }
        if (genvelope)
            genvelope[p] += total;
        REAL *to[3] = {gatoms ? gatoms + TARGET(e) * 4 * m : NULL,
                       gatoms ? gatoms + SOURCE(e) * 4 * m + 2 * m : NULL,
                       gown ? gown + p * 2 * m : NULL};
        for (int k = 0; k < 3; k++)
            if (to[k])
                accumulate(to[k], gz, 2 * m);
    }
}

/* dst = (src0 - its mean) / its standard deviation * w0 + w1, row by row */
static void norm(const evaluation *c, integer P, const step *s)
{
    const integer m = s->m, n = rows_of(c, P, s->dst);
    const REAL *x = SLOT(s->src[0]);
    REAL *y = SLOT(s->dst), *unit = SLOT(s->aux[0]), *inverse = SLOT(s->aux[1]);
    for (integer i = 0; i < n; i++) {
        double mean = 0, square = 0;
        for (integer q = i * m; q < (i + 1) * m; q++)
            mean += (double)x[q];
        mean /= (double)m;
        for (integer q = i * m; q < (i + 1) * m; q++)
            square += ((double)x[q] - mean) * ((double)x[q] - mean);
        inverse[i] = (REAL)(1 / sqrt(square / (double)m + s->scale));
        for (integer q = 0; q < m; q++) {
            unit[i * m + q] = (x[i * m + q] - (REAL)mean) * inverse[i];
            y[i * m + q] = unit[i * m + q] * s->w[0][q] + s->w[1][q];
        }
    }
}

static void norm_back(const evaluation *c, integer P, const step *s)
{
    const integer m = s->m, n = rows_of(c, P, s->dst);
    REAL *g = SLOT(s->gdst), *gx = SLOT(s->gsrc[0]);
    const REAL *unit = SLOT(s->aux[0]), *inverse = SLOT(s->aux[1]);
    for (integer i = 0; gx && i < n; i++) {
        REAL mean = 0, along = 0;
        for (integer q = 0; q < m; q++) {
            g[i * m + q] *= s->w[0][q];
            mean += g[i * m + q];
            along += g[i * m + q] * unit[i * m + q];
        }
        mean /= (REAL)m;
        along /= (REAL)m;
        for (integer q = i * m; q < (i + 1) * m; q++)
            gx[q] = (s->add[0] ? gx[q] : 0) + inverse[i] * (g[q] - mean - unit[q] * along);
    }
}

/* ForceNet: dst[i] = w0 src0[i] + sum over j of src2[pair] src1[edge] src0[j] */
static void continuous(const evaluation *c, integer P, const step *s)
{
    const integer m = s->m;
    const REAL *x = SLOT(s->src[0]), *f = SLOT(s->src[1]), *envelope = SLOT(s->src[2]);
    REAL *y = SLOT(s->dst);
    for (integer a = 0; a < c->atoms; a++)
        for (integer q = 0; q < m; q++)
            y[a * m + q] = s->w[0][q] * x[a * m + q];
    for (integer e = 0; e < 2 * P; e++) {
        const REAL weight = envelope[PAIR(e)], *from = x + SOURCE(e) * m, *by = f + e * m;
        REAL *restrict to = y + TARGET(e) * m;
        for (integer q = 0; q < m; q++)
            to[q] += weight * by[q] * from[q];
    }
}

static void continuous_back(const evaluation *c, integer P, const step *s)
{
    const integer m = s->m;
    const REAL *x = SLOT(s->src[0]), *f = SLOT(s->src[1]), *envelope = SLOT(s->src[2]),
               *g = SLOT(s->gdst);
    REAL *gx = gradient(c, P, s, 0, 0), *gf = SLOT(s->gsrc[1]),
         *genvelope = gradient(c, P, s, 2, 0);
    for (integer a = 0; gx && a < c->atoms; a++)
        for (integer q = 0; q < m; q++)
            gx[a * m + q] += s->w[0][q] * g[a * m + q];
    for (integer e = 0; e < 2 * P; e++) {
        const REAL weight = envelope[PAIR(e)], *restrict from = x + SOURCE(e) * m,
                   *restrict by = f + e * m, *restrict h = g + TARGET(e) * m;
        REAL *restrict to = gf + e * m, total = 0;
        for (integer q = 0; q < m; q++) {
            total += h[q] * by[q] * from[q];
            to[q] = (s->add[1] ? to[q] : 0) + weight * h[q] * from[q];
        }
        if (gx) {
            REAL *restrict too = gx + SOURCE(e) * m;
            for (integer q = 0; q < m; q++)
                too[q] += weight * h[q] * by[q];
        }
        if (genvelope)
            genvelope[PAIR(e)] += total;
    }
}

#endif

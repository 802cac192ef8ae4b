/* The pair convolution of SchNet with filters from a table, forwards and backwards, for batches whose
 * distances need no gradient (training on energies alone).
 *
 * A filter is made from four rows of the table where it is used, so that nothing of the size
 * pairs x filters is stored: table and features stay in the processor's cache. Names as in
 * potentials/spline.py and potentials/convolution.py.
 */
#include <stdint.h>

#ifndef REAL
#define REAL float
#endif

typedef int64_t integer;

/* out[i] += W x[j], out[j] += W x[i], W = sum_a weight[p, a] table[row[p] + a], p = (i, j).
 * list [2, pairs]; rows [pairs]; weights [pairs, 4]; table [., filters]; x, out [atoms, filters],
 * out zero at first. */
void filter_convolution(integer pairs, integer filters, const integer *restrict list,
                        const integer *restrict rows, const REAL *restrict weights,
                        const REAL *restrict table, const REAL *restrict x, REAL *restrict out)
{
    for (integer p = 0; p < pairs; p++) {
        const integer i = list[p], j = list[pairs + p];
        const REAL *t0 = table + rows[p] * filters, *t1 = t0 + filters, *t2 = t1 + filters,
                   *t3 = t2 + filters;
        const REAL b0 = weights[4 * p], b1 = weights[4 * p + 1], b2 = weights[4 * p + 2],
                   b3 = weights[4 * p + 3];
        const REAL *xi = x + i * filters, *xj = x + j * filters;
        REAL *oi = out + i * filters, *oj = out + j * filters;
        if (i == j) { /* an atom and its own image: both directions land in one place */
            for (integer f = 0; f < filters; f++)
                oi[f] += 2 * (b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f]) * xi[f];
            continue;
        }
#pragma GCC ivdep
        for (integer f = 0; f < filters; f++) {
            const REAL W = b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f];
            oi[f] += W * xj[f];
            oj[f] += W * xi[f];
        }
    }
}

/* Its transpose in x, y[i] += W g[j], y[j] += W g[i], and in the table,
 * slope[row[p] + a] += weight[p, a] (g[i] x[j] + g[j] x[i]); y and slope zero at first. */
void filter_convolution_transpose(integer pairs, integer filters, const integer *restrict list,
                                  const integer *restrict rows, const REAL *restrict weights,
                                  const REAL *restrict table, const REAL *restrict x,
                                  const REAL *restrict g, REAL *restrict y, REAL *restrict slope)
{
    for (integer p = 0; p < pairs; p++) {
        const integer i = list[p], j = list[pairs + p];
        const REAL *t0 = table + rows[p] * filters, *t1 = t0 + filters, *t2 = t1 + filters,
                   *t3 = t2 + filters;
        REAL *s0 = slope + rows[p] * filters, *s1 = s0 + filters, *s2 = s1 + filters,
             *s3 = s2 + filters;
        const REAL b0 = weights[4 * p], b1 = weights[4 * p + 1], b2 = weights[4 * p + 2],
                   b3 = weights[4 * p + 3];
        const REAL *xi = x + i * filters, *xj = x + j * filters;
        const REAL *gi = g + i * filters, *gj = g + j * filters;
        REAL *yi = y + i * filters, *yj = y + j * filters;
        if (i == j) {
            for (integer f = 0; f < filters; f++) {
                yi[f] += 2 * (b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f]) * gi[f];
                const REAL both = 2 * gi[f] * xi[f];
                s0[f] += b0 * both;
                s1[f] += b1 * both;
                s2[f] += b2 * both;
                s3[f] += b3 * both;
            }
            continue;
        }
#pragma GCC ivdep
        for (integer f = 0; f < filters; f++) {
            const REAL W = b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f];
            const REAL both = gi[f] * xj[f] + gj[f] * xi[f];
            yi[f] += W * gj[f];
            yj[f] += W * gi[f];
            s0[f] += b0 * both;
            s1[f] += b1 * both;
            s2[f] += b2 * both;
            s3[f] += b3 * both;
        }
    }
}

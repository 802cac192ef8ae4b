/* SchNet with tabulated filters: atom energies, forces and virial of one system.
 *
 * Compiled at run time, once for float and once for double (REAL), see build.py. The arithmetic is
 * that of potentials/schnet.py with filter_knots; names are the same. A half list of pairs is
 * gone through twice a layer, forwards and backwards, and the filters of a pair are made from four
 * rows of the table on the way, so that nothing of the size pairs x filters is ever stored.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif

#if defined(__GLIBC__) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
/* glibc has vector versions of these; its headers tell the compiler only under -ffast-math. */
__attribute__((simd("notinbranch"))) float expf(float);
__attribute__((simd("notinbranch"))) float logf(float);
__attribute__((simd("notinbranch"))) double exp(double);
__attribute__((simd("notinbranch"))) double log(double);
#endif
#define EXP(x) (sizeof(REAL) == 4 ? (REAL)expf((float)(x)) : (REAL)exp((double)(x)))
#define LOG(x) (sizeof(REAL) == 4 ? (REAL)logf((float)(x)) : (REAL)log((double)(x)))
#define LN2 ((REAL)0.69314718055994530942)

/* Rows and columns of the tile of a matrix product that is kept in registers. */
#define ROWS 4
#define TILE 32

typedef int64_t integer;

/* C[n, m] = (add ? C : 0) + bias[m] + A[n, k] B[k, m] */
static void product(integer n, integer k, integer m, const REAL *restrict A,
                    const REAL *restrict B, const REAL *restrict bias, REAL *restrict C, int add)
{
    for (integer i = 0; i < n; i += ROWS) {
        const integer rows = n - i < ROWS ? n - i : ROWS;
        for (integer j = 0; j < m; j += TILE) {
            const integer columns = m - j < TILE ? m - j : TILE;
            REAL sum[ROWS][TILE];
            if (rows == ROWS && columns == TILE) {
                for (int r = 0; r < ROWS; r++)
                    for (int c = 0; c < TILE; c++)
                        sum[r][c] = bias ? bias[j + c] : 0;
                for (integer q = 0; q < k; q++)
                    for (int r = 0; r < ROWS; r++)
                        for (int c = 0; c < TILE; c++)
                            sum[r][c] += A[(i + r) * k + q] * B[q * m + j + c];
            } else {
                for (integer r = 0; r < rows; r++) {
                    for (integer c = 0; c < columns; c++)
                        sum[r][c] = bias ? bias[j + c] : 0;
                    for (integer q = 0; q < k; q++)
                        for (integer c = 0; c < columns; c++)
                            sum[r][c] += A[(i + r) * k + q] * B[q * m + j + c];
                }
            }
            for (integer r = 0; r < rows; r++) {
                REAL *target = C + (i + r) * m + j;
                for (integer c = 0; c < columns; c++)
                    target[c] = (add ? target[c] : 0) + sum[r][c];
            }
        }
    }
}

/* In the order of ACTIVATIONS in schnet.py. */
enum { IRELU, SSP, SOFTPLUS, SILU, TANH, LOG_COSH };

/* x <- phi(x), slope <- phi'(x) */
static void activate(int kind, integer n, REAL *restrict x, REAL *restrict slope)
{
    switch (kind) {
    case IRELU:
        for (integer q = 0; q < n; q++) {
            const REAL r = x[q] > 0 ? x[q] : 0;
            slope[q] = r;
            x[q] = (REAL)0.5 * r * r;
        }
        break;
    case SSP:
    case SOFTPLUS: {
        const REAL shift = kind == SSP ? LN2 : 0;
        for (integer q = 0; q < n; q++) {
            const REAL e = EXP(x[q] > 0 ? -x[q] : x[q]);
            slope[q] = (x[q] > 0 ? 1 : e) / (1 + e);
            x[q] = (x[q] > 0 ? x[q] : 0) + LOG(1 + e) - shift;
        }
        break;
    }
    case SILU:
        for (integer q = 0; q < n; q++) {
            const REAL e = EXP(x[q] > 0 ? -x[q] : x[q]);
            const REAL s = (x[q] > 0 ? 1 : e) / (1 + e);
            slope[q] = s * (1 + x[q] * (1 - s));
            x[q] = x[q] * s;
        }
        break;
    case TANH:
    case LOG_COSH:
        for (integer q = 0; q < n; q++) {
            const REAL size = x[q] > 0 ? x[q] : -x[q], e = EXP(-2 * size);
            const REAL t = (x[q] > 0 ? 1 : -1) * (1 - e) / (1 + e);
            if (kind == TANH) {
                slope[q] = 1 - t * t;
                x[q] = t;
            } else {
                slope[q] = t;
                x[q] = size + LOG(1 + e) - LN2;
            }
        }
        break;
    }
}

/* A pair within the cutoff. */
typedef struct {
    integer i, j, row;
    REAL value[4], slope[4]; /* weights of four rows of the table: W = sum value T, W' = sum slope T */
    double r[3], d, pull;    /* pull: dE/dd */
} pair;

/* Cubic B-spline weights and their derivatives, as in potentials/spline.py. */
static void locate(pair *p, integer intervals, double spacing)
{
    double s = p->d / spacing;
    integer at = (integer)s;
    at = at > intervals - 1 ? intervals - 1 : at;
    const double t = s - (double)at, o = 1 - t;
    p->row = at;
    p->value[0] = (REAL)(o * o * o / 6);
    p->value[1] = (REAL)((3 * t * t * t - 6 * t * t + 4) / 6);
    p->value[2] = (REAL)((3 * o * o * o - 6 * o * o + 4) / 6);
    p->value[3] = (REAL)(t * t * t / 6);
    p->slope[0] = (REAL)(-o * o / 2 / spacing);
    p->slope[1] = (REAL)((3 * t * t - 4 * t) / 2 / spacing);
    p->slope[2] = (REAL)((4 * o - 3 * o * o) / 2 / spacing);
    p->slope[3] = (REAL)(t * t / 2 / spacing);
}

/* message[i] += W x[j], message[j] += W x[i] */
static void convolve(const pair *p, const REAL *restrict table, integer columns, integer filters,
                     const REAL *restrict x, REAL *restrict message)
{
    const REAL *t0 = table + p->row * columns, *t1 = t0 + columns, *t2 = t1 + columns,
               *t3 = t2 + columns;
    const REAL b0 = p->value[0], b1 = p->value[1], b2 = p->value[2], b3 = p->value[3];
    const REAL *xi = x + p->i * filters, *xj = x + p->j * filters;
    REAL *mi = message + p->i * filters, *mj = message + p->j * filters;
    if (p->i == p->j) { /* an atom and its own image: both directions land in one place */
        for (integer f = 0; f < filters; f++)
            mi[f] += 2 * (b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f]) * xi[f];
        return;
    }
#pragma GCC ivdep
    for (integer f = 0; f < filters; f++) {
        const REAL W = b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f];
        mi[f] += W * xj[f];
        mj[f] += W * xi[f];
    }
}

/* The same for the gradients, y[i] += W g[j], and the pair's dE/dd += sum_f W' (g_i x_j + g_j x_i) */
static void transpose(pair *p, const REAL *restrict table, integer columns, integer filters,
                      const REAL *restrict x, const REAL *restrict g, REAL *restrict y)
{
    const REAL *t0 = table + p->row * columns, *t1 = t0 + columns, *t2 = t1 + columns,
               *t3 = t2 + columns;
    const REAL b0 = p->value[0], b1 = p->value[1], b2 = p->value[2], b3 = p->value[3];
    const REAL s0 = p->slope[0], s1 = p->slope[1], s2 = p->slope[2], s3 = p->slope[3];
    const REAL *xi = x + p->i * filters, *xj = x + p->j * filters;
    const REAL *gi = g + p->i * filters, *gj = g + p->j * filters;
    REAL *yi = y + p->i * filters, *yj = y + p->j * filters;
    REAL sum = 0;
    if (p->i == p->j) {
        for (integer f = 0; f < filters; f++) {
            yi[f] += 2 * (b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f]) * gi[f];
            sum += 2 * (s0 * t0[f] + s1 * t1[f] + s2 * t2[f] + s3 * t3[f]) * gi[f] * xi[f];
        }
    } else {
#pragma GCC ivdep
        for (integer f = 0; f < filters; f++) {
            const REAL W = b0 * t0[f] + b1 * t1[f] + b2 * t2[f] + b3 * t3[f];
            yi[f] += W * gj[f];
            yj[f] += W * gi[f];
            sum += (s0 * t0[f] + s1 * t1[f] + s2 * t2[f] + s3 * t3[f]) *
                   (gi[f] * xj[f] + gj[f] * xi[f]);
        }
    }
    p->pull += (double)sum;
}

integer size_of_pair(void) { return (integer)sizeof(pair); }

/* Arguments: sizes[7] = atoms, listed pairs, hidden, filters, layers, half (read-out), intervals;
 * lengths[2] = cutoff, spacing in A; list [2, pairs]; offsets: cell vectors between the atoms of a
 * pair, A, [pairs, 3], or NULL; weights: embedding; for each layer: atom_in, atom_out, its bias,
 * update, its bias (each [in, out]), and the three matrices transposed; then out_in, its bias,
 * out_in transposed, out, its bias; table [intervals + 3, layers, filters].
 * work: [atoms (layers (filters + hidden) + 2 hidden + 2 filters + 2 half)]; pairs: room for all.
 * Results in the network's unit: energy [atoms], force [atoms, 3], virial [3, 3] (dE/d strain),
 * neighbours [atoms]. */
void schnet(const integer *sizes, const double *lengths, int kind, const double *restrict positions,
            const integer *restrict list, const double *restrict offsets,
            const integer *restrict species, const REAL *const *weights,
            const REAL *restrict table, REAL *restrict work, pair *restrict pairs,
            double *restrict energy, double *restrict force, double *restrict virial,
            integer *restrict neighbours)
{
    const integer n = sizes[0], listed = sizes[1], hidden = sizes[2], filters = sizes[3],
                  layers = sizes[4], half = sizes[5], intervals = sizes[6];
    const integer nh = n * hidden, nf = n * filters, columns = layers * filters;
    const double limit = lengths[0] * lengths[0];

    memset(neighbours, 0, (size_t)n * sizeof(integer));
    integer count = 0;
    for (integer q = 0; q < listed; q++) {
        pair *p = pairs + count;
        p->i = list[q];
        p->j = list[listed + q];
        double square = 0;
        for (int c = 0; c < 3; c++) {
            p->r[c] = positions[3 * p->j + c] - positions[3 * p->i + c];
            if (offsets)
                p->r[c] += offsets[3 * q + c];
            square += p->r[c] * p->r[c];
        }
        if (!(square < limit))
            continue;
        p->d = sqrt(square);
        p->pull = 0;
        locate(p, intervals, lengths[1]);
        neighbours[p->i]++;
        neighbours[p->j]++;
        count++;
    }

    REAL *const x = work, *const bent = x + layers * nf, *const h = bent + layers * nh,
               *const u = h + nh, *const message = u + nh, *const y = message + nf,
               *const head = y + nf, *const head_bent = head + n * half;
    for (integer a = 0; a < n; a++)
        memcpy(h + a * hidden, weights[0] + species[a] * hidden, (size_t)hidden * sizeof(REAL));
    for (integer l = 0; l < layers; l++) {
        const REAL *const *w = weights + 1 + 8 * l;
        product(n, hidden, filters, h, w[0], NULL, x + l * nf, 0);
        memset(message, 0, (size_t)nf * sizeof(REAL));
        for (integer q = 0; q < count; q++)
            convolve(pairs + q, table + l * filters, columns, filters, x + l * nf, message);
        product(n, filters, hidden, message, w[1], w[2], u, 0);
        activate(kind, nh, u, bent + l * nh);
        product(n, hidden, hidden, u, w[3], w[4], h, 1);
    }
    const REAL *const *out = weights + 1 + 8 * layers;
    product(n, hidden, half, h, out[0], out[1], head, 0);
    activate(kind, n * half, head, head_bent);
    for (integer a = 0; a < n; a++) {
        double sum = (double)out[4][0];
        for (integer q = 0; q < half; q++) {
            sum += (double)(head[a * half + q] * out[3][q]);
            head_bent[a * half + q] *= out[3][q];
        }
        energy[a] = sum;
    }

    REAL *const g = h; /* from here on dE/dh */
    product(n, half, hidden, head_bent, out[2], NULL, g, 0);
    for (integer l = layers - 1; l >= 0; l--) {
        const REAL *const *w = weights + 1 + 8 * l;
        product(n, hidden, hidden, g, w[7], NULL, u, 0);
        for (integer q = 0; q < nh; q++)
            u[q] *= bent[l * nh + q];
        product(n, hidden, filters, u, w[6], NULL, message, 0);
        memset(y, 0, (size_t)nf * sizeof(REAL));
        for (integer q = 0; q < count; q++)
            transpose(pairs + q, table + l * filters, columns, filters, x + l * nf, message, y);
        if (l > 0) /* the embedding does not depend on positions */
            product(n, filters, hidden, y, w[5], NULL, g, 1);
    }

    memset(force, 0, (size_t)(3 * n) * sizeof(double));
    memset(virial, 0, 9 * sizeof(double));
    for (integer q = 0; q < count; q++) {
        const pair *p = pairs + q;
        for (int c = 0; c < 3; c++) {
            const double pull = p->pull / p->d * p->r[c];
            force[3 * p->i + c] += pull;
            force[3 * p->j + c] -= pull;
            for (int e = 0; e < 3; e++)
                virial[3 * c + e] += pull * p->r[e];
        }
    }
}

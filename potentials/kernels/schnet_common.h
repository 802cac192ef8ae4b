/* What all kernels share: vectors, matrix products, activations, splines of a pair's distance; names
 * as in potentials/networks/schnet.py and potentials/networks/splines.py. */
#ifndef DCASE_SCHNET_COMMON_H
#define DCASE_SCHNET_COMMON_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

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

/* Vectors as wide as the processor's registers, and the tile of a matrix product: ROWS rows of two
 * vectors, which stay in registers. */
#ifdef __AVX512F__
#define VECTOR_BYTES 64
#else
#define VECTOR_BYTES 32
#endif
#define WIDTH ((integer)(VECTOR_BYTES / sizeof(REAL)))
#define ROWS 6
#define TILE (2 * WIDTH)

typedef int64_t integer;
typedef REAL vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

/* One whole tile of multiply(); inlined, so that it is compiled for each number of rows apart. */
static inline __attribute__((always_inline)) void
multiply_tile(int rows, integer k, integer m, const REAL *restrict A, integer row, integer column,
              const REAL *restrict B, const REAL *restrict bias, REAL *restrict C, int add)
{
    vector sum[ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2; c++)
            sum[r][c] = bias ? *(const vector *)(bias + c * WIDTH) : (vector){0};
    for (integer q = 0; q < k; q++) {
        const vector left = *(const vector *)(B + q * m),
                     right = *(const vector *)(B + q * m + WIDTH);
        for (int r = 0; r < rows; r++) {
            const REAL a = A[r * row + q * column];
            sum[r][0] += a * left;
            sum[r][1] += a * right;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2; c++) {
            vector *target = (vector *)(C + r * m + c * WIDTH);
            *target = sum[r][c] + (add ? *target : (vector){0});
        }
}

/* C[n, m] = (add ? C : 0) + bias[m] + A[n, k] B[k, m], element (i, q) of A at i row + q column */
static void multiply(integer n, integer k, integer m, const REAL *restrict A, integer row,
                     integer column, const REAL *restrict B, const REAL *restrict bias,
                     REAL *restrict C, int add)
{
    const integer whole = m - m % TILE;
#define ROWS_OF_TILE(count)                                                                        \
    case count:                                                                                    \
        multiply_tile(count, k, m, A + i * row, row, column, B + j, bias ? bias + j : NULL,        \
                      C + i * m + j, add);                                                         \
        break
    for (integer i = 0; i < n; i += ROWS)
        for (integer j = 0; j < whole; j += TILE)
            switch (n - i < ROWS ? n - i : ROWS) {
                ROWS_OF_TILE(6);
                ROWS_OF_TILE(5);
                ROWS_OF_TILE(4);
                ROWS_OF_TILE(3);
                ROWS_OF_TILE(2);
                ROWS_OF_TILE(1);
            }
#undef ROWS_OF_TILE
    for (integer i = 0; whole < m && i < n; i++) { /* columns that fill no tile */
        REAL sum[TILE];
        for (integer c = 0; c < m - whole; c++)
            sum[c] = bias ? bias[whole + c] : 0;
        for (integer q = 0; q < k; q++)
            for (integer c = 0; c < m - whole; c++)
                sum[c] += A[i * row + q * column] * B[q * m + whole + c];
        for (integer c = 0; c < m - whole; c++)
            C[i * m + whole + c] = (add ? C[i * m + whole + c] : 0) + sum[c];
    }
}

/* C[n, m] = (add ? C : 0) + bias[m] + A[n, k] B[k, m] */
static void product(integer n, integer k, integer m, const REAL *A, const REAL *B,
                    const REAL *bias, REAL *C, int add)
{
    multiply(n, k, m, A, k, 1, B, bias, C, add);
}

/* sum[m] += the rows of A[n, m] */
static void add_columns(integer n, integer m, const REAL *restrict A, REAL *restrict sum)
{
    for (integer a = 0; a < n; a++)
        for (integer c = 0; c < m; c++)
            sum[c] += A[a * m + c];
}

/* That there can be at once */
int most_threads(void)
{
#ifdef _OPENMP
    return omp_get_num_procs();
#else
    return 1;
#endif
}

/* In the order of ACTIVATIONS in schnet.py; TABULATED is any other. */
enum { IRELU, SSP, SOFTPLUS, SILU, TANH, LOG_COSH, TABULATED };

/* A function by cubics on even intervals, sum_k c[k] u^k with u in [0, 1] across an interval; the
 * first and the last row are for what is outside, u counted from the lowest and the highest knot. */
typedef struct {
    integer intervals;
    double lowest, spacing;
    const double *coefficients; /* [intervals + 2, 4] */
} curve;

static void follow(const curve *bend, integer n, const REAL *x, REAL *y, REAL *slope,
                   REAL *curvature)
{
    const double rate = 1 / bend->spacing, last = (double)bend->intervals;
    for (integer q = 0; q < n; q++) {
        const double t = ((double)x[q] - bend->lowest) * rate;
        const double inside = t > 0 ? (t < last ? t : last) : 0; /* NaN: 0, and stays NaN in u */
        const double knot = inside < last ? floor(inside) : last;
        const double *c = bend->coefficients + 4 * (t < 0 ? 0 : (integer)knot + 1);
        const double u = t - (t < 0 ? 0 : knot);
        y[q] = (REAL)(c[0] + u * (c[1] + u * (c[2] + u * c[3])));
        slope[q] = (REAL)((c[1] + u * (2 * c[2] + u * 3 * c[3])) * rate);
        if (curvature)
            curvature[q] = (REAL)((2 * c[2] + u * 6 * c[3]) * rate * rate);
    }
}

/* y = phi(x), slope = phi'(x) and, unless it is NULL, curvature = phi''(x); y may be x */
static void activate(int kind, const curve *bend, integer n, const REAL *x, REAL *y, REAL *slope,
                     REAL *curvature)
{
    if (kind == TABULATED) {
        follow(bend, n, x, y, slope, curvature);
        return;
    }
#define EACH(statements, first, second)                                                            \
    if (curvature)                                                                                 \
        for (integer q = 0; q < n; q++) {                                                          \
            const REAL in = x[q];                                                                  \
            statements;                                                                            \
            slope[q] = first;                                                                      \
            curvature[q] = second;                                                                 \
        }                                                                                          \
    else                                                                                           \
        for (integer q = 0; q < n; q++) {                                                          \
            const REAL in = x[q];                                                                  \
            statements;                                                                            \
            slope[q] = first;                                                                      \
        }                                                                                          \
    break

    const REAL shift = kind == SSP ? LN2 : 0;
    switch (kind) {
    case IRELU:
        EACH(const REAL r = in > 0 ? in : 0; y[q] = (REAL)0.5 * r * r, r, in > 0 ? 1 : 0);
    case SSP:
    case SOFTPLUS:
        EACH(const REAL e = EXP(in > 0 ? -in : in); const REAL s = (in > 0 ? 1 : e) / (1 + e);
             y[q] = (in > 0 ? in : 0) + LOG(1 + e) - shift, s, s * (1 - s));
    case SILU:
        EACH(const REAL e = EXP(in > 0 ? -in : in); const REAL s = (in > 0 ? 1 : e) / (1 + e);
             y[q] = in * s, s * (1 + in * (1 - s)), s * (1 - s) * (2 + in * (1 - 2 * s)));
    case TANH:
        EACH(const REAL e = EXP(in > 0 ? -2 * in : 2 * in);
             const REAL t = (in > 0 ? 1 : -1) * (1 - e) / (1 + e);
             y[q] = t, 1 - t * t, -2 * t * (1 - t * t));
    case LOG_COSH:
        EACH(const REAL e = EXP(in > 0 ? -2 * in : 2 * in);
             const REAL t = (in > 0 ? 1 : -1) * (1 - e) / (1 + e);
             y[q] = (in > 0 ? in : -in) + LOG(1 + e) - LN2, t, 1 - t * t);
    }
#undef EACH
}

/* A pair within the cutoff. */
typedef struct {
    integer i, j, row;
    REAL value[4], slope[4]; /* weights of four rows of the table: W = sum value T, W' = sum slope T */
    double r[3], d, pull, rate; /* pull: dE/dd; rate: of d along a direction (training) */
} pair;

/* Cubic B-spline weights and their derivatives at d, as in potentials/networks/splines.py; returns
 * the row of the first of the four coefficients. */
static integer spline_weights(double d, integer intervals, double spacing, double value[4],
                              double slope[4])
{
    double s = d / spacing;
    s = s > (double)intervals ? (double)intervals : s;
    integer at = (integer)s;
    at = at > intervals - 1 ? intervals - 1 : at;
    const double t = s - (double)at, o = 1 - t;
    value[0] = o * o * o / 6;
    value[1] = (3 * t * t * t - 6 * t * t + 4) / 6;
    value[2] = (3 * o * o * o - 6 * o * o + 4) / 6;
    value[3] = t * t * t / 6;
    slope[0] = -o * o / 2 / spacing;
    slope[1] = (3 * t * t - 4 * t) / 2 / spacing;
    slope[2] = (4 * o - 3 * o * o) / 2 / spacing;
    slope[3] = t * t / 2 / spacing;
    return at;
}

static void locate(pair *p, integer intervals, double spacing)
{
    double value[4], slope[4];
    p->row = spline_weights(p->d, intervals, spacing, value, slope);
    for (int k = 0; k < 4; k++) {
        p->value[k] = (REAL)value[k];
        p->slope[k] = (REAL)slope[k];
    }
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

#endif

/* What a thread is given of a batch in training; the same for every network that has a compiled
 * gradient. Who includes it writes forward() and backward(), and ends with FOR_SHARES of both. */
#ifndef DCASE_TRAINING_SHARE_H
#define DCASE_TRAINING_SHARE_H

#include "schnet_common.h"

/* C[k, m] += A[n, k]^T B[n, m] */
static void outer(integer n, integer k, integer m, const REAL *A, const REAL *B, REAL *C)
{
    multiply(k, n, m, A, 1, k, B, NULL, C, 1);
}

#define SIDE 32 /* of a tile of a matrix that is transposed, in the nearest cache */

/* Each of several matrices A [rows, columns] to A^T, one behind the other in B; shapes [count, 2] */
void flip(integer count, const integer *shapes, const REAL *const *A, REAL *B)
{
    REAL tile[SIDE][SIDE];
    for (integer c = 0; c < count; c++) {
        const integer n = shapes[2 * c], m = shapes[2 * c + 1];
        for (integer i = 0; i < n; i += SIDE)
            for (integer j = 0; j < m; j += SIDE) {
                const integer rows = n - i < SIDE ? n - i : SIDE,
                              columns = m - j < SIDE ? m - j : SIDE;
                for (integer p = 0; p < rows; p++)
                    for (integer q = 0; q < columns; q++)
                        tile[q][p] = A[c][(i + p) * m + j + q];
                for (integer q = 0; q < columns; q++)
                    memcpy(B + (j + q) * n + i, tile[q], (size_t)rows * sizeof(REAL));
            }
        B += n * m;
    }
}

/* Whole systems; the same fields as in training.py. */
typedef struct {
    const integer *sizes;    /* atoms, pairs, and those of the network */
    integer first, apart;    /* the first atom's number in list; from i of a pair to its j there */
    double spacing;          /* of the table, A */
    double softening;        /* of lengths (PaiNN) */
    integer kind, head;      /* of activations, before and in the read-out */
    const double *r;         /* x_j - x_i with cell vectors, A, [pairs, 3] */
    const integer *list;     /* i of the pairs, and j; all of them are used */
    const integer *species;  /* [atoms] */
    const REAL *const *weights;
    const REAL *table;
    REAL *work;              /* size_of_work() */
    void *pairs;             /* [pairs] of size_of_pair() */
    double *energy, *force;  /* results of forward(); force may be NULL: then energies alone */
    double *pull;            /* another result: dE/dr of each pair, [pairs, 3], where force is not
                              * NULL; may be NULL */
    const double *gE, *gF;   /* for backward(): [atoms], [atoms, 3]; gF may be NULL */
    const double *gr;        /* the same by the pulls: [pairs, 3]; may be NULL */
    REAL *const *gradients;  /* results of backward(), added to */
    REAL *table_gradient;
} share;

/* Atoms, vector and distance of pair q. */
static void take_pair(const share *c, integer q, pair *p)
{
    p->i = c->list[q] - c->first;
    p->j = c->list[c->apart + q] - c->first;
    double square = 0;
    for (int e = 0; e < 3; e++) {
        p->r[e] = c->r[3 * q + e];
        square += p->r[e] * p->r[e];
    }
    p->d = sqrt(square);
}

integer size_of_share(void) { return (integer)sizeof(share); }

/* Whether S has derivatives of the energy in it. */
static int has_direction(const share *c) { return c->gF != NULL || c->gr != NULL; }

/* How fast the vector of pair q, from i to j, goes along the direction of S: F = -dE/dx. */
static void rate_of_vector(const share *c, integer q, integer i, integer j, double rate[3])
{
    for (int e = 0; e < 3; e++) {
        rate[e] = c->gr ? c->gr[3 * q + e] : 0;
        if (c->gF)
            rate[e] += c->gF[3 * i + e] - c->gF[3 * j + e];
    }
}

/* Shares that one thread takes in turn have their gradients together; the threads are those that
 * torch has, where both use one OpenMP. from [threads + 1]: the first share of each, and the end. */
#ifdef _OPENMP
#define BY_THREADS                                                                                 \
    _Pragma("omp parallel for schedule(static, 1) num_threads((int)threads) if (threads > 1)")
#else
#define BY_THREADS
#endif
#define FOR_SHARES(name)                                                                           \
    void name##_shares(integer threads, const integer *from, const share *shares)                  \
    {                                                                                              \
        BY_THREADS                                                                                 \
        for (integer t = 0; t < threads; t++)                                                      \
            for (integer q = from[t]; q < from[t + 1]; q++)                                        \
                name(shares + q);                                                                  \
    }

#endif

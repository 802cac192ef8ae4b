/* The table of a SchNet's filters, and its gradient by the weights of the filter networks.
 *
 * With e the Gaussians and c the cutoff at the knots, and M from values to spline coefficients:
 *
 *     a = phi(e W1 + b1),   v = c (a W2 + b2),   table = M v
 */
#include "schnet_common.h"

/* The same fields as in filter_table.py. */
typedef struct {
    integer knots, gaussians, filters, layers, kind;
    const REAL *basis, *cut;         /* e, [knots, gaussians], and c, [knots] */
    const REAL *to_coefficients;     /* M, [knots + 2, knots] */
    const REAL *const *weights;      /* of each layer: W1 [gaussians, filters], b1, W2 [in, out], b2,
                                      * W2 [out, in] */
    REAL *a, *bent;                  /* [layers, knots, filters], kept for backward() */
    REAL *values;                    /* [knots, layers, filters] */
    REAL *scratch;                   /* [2, knots, filters] */
    REAL *table;                     /* [knots + 2, layers, filters]; for backward() its gradient */
    REAL *const *gradients;          /* of the first four of each layer, added to */
} filter_table;

integer size_of_table(void) { return (integer)sizeof(filter_table); }

void forward(const filter_table *t)
{
    const integer n = t->knots, f = t->filters, all = t->layers * f;
    for (integer l = 0; l < t->layers; l++) {
        const REAL *const *w = t->weights + 5 * l;
        REAL *a = t->a + l * n * f, *v = t->scratch;
        product(n, t->gaussians, f, t->basis, w[0], w[1], a, 0);
        activate((int)t->kind, NULL, n * f, a, a, t->bent + l * n * f, NULL);
        product(n, f, f, a, w[2], w[3], v, 0);
        for (integer k = 0; k < n; k++)
            for (integer q = 0; q < f; q++)
                t->values[k * all + l * f + q] = t->cut[k] * v[k * f + q];
    }
    product(n + 2, n, all, t->to_coefficients, t->values, NULL, t->table, 0);
}

/* After forward() with the same arguments; the table's place holds its gradient. */
void backward(const filter_table *t)
{
    const integer n = t->knots, g = t->gaussians, f = t->filters, all = t->layers * f;
    multiply(n, n + 2, all, t->to_coefficients, 1, n, t->table, NULL, t->values, 0);
    for (integer l = 0; l < t->layers; l++) {
        const REAL *const *w = t->weights + 5 * l;
        REAL *const *gradient = t->gradients + 4 * l;
        const REAL *a = t->a + l * n * f, *bent = t->bent + l * n * f;
        REAL *v = t->scratch, *z = v + n * f;
        for (integer k = 0; k < n; k++)
            for (integer q = 0; q < f; q++)
                v[k * f + q] = t->cut[k] * t->values[k * all + l * f + q];
        multiply(f, n, f, a, 1, f, v, NULL, gradient[2], 1);
        add_columns(n, f, v, gradient[3]);
        product(n, f, f, v, w[4], NULL, z, 0);
        for (integer q = 0; q < n * f; q++)
            z[q] *= bent[q];
        multiply(g, n, f, t->basis, 1, g, z, NULL, gradient[0], 1);
        add_columns(n, f, z, gradient[1]);
    }
}

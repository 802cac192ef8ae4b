/* SchNet with tabulated filters: atom energies, forces and virial of one system.
 *
 * Compiled at run time, once for float and once for double (REAL), see build.py. The arithmetic is
 * that of potentials/schnet.py with filter_knots; names are the same. A half list of pairs is
 * gone through twice a layer, forwards and backwards, and the filters of a pair are made from four
 * rows of the table on the way, so that nothing of the size pairs x filters is ever stored.
 */
#include "schnet_common.h"

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
        activate(kind, nh, u, u, bent + l * nh, NULL);
        product(n, hidden, hidden, u, w[3], w[4], h, 1);
    }
    const REAL *const *out = weights + 1 + 8 * layers;
    product(n, hidden, half, h, out[0], out[1], head, 0);
    activate(kind, n * half, head, head, head_bent, NULL);
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

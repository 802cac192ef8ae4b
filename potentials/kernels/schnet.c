/* SchNet: atom energies, forces and virial of one system.
 *
 * Compiled at run time, once for float and once for double (REAL), see build.py. The arithmetic is
 * that of potentials/networks/schnet.py; names are the same. A half list of pairs is gone through twice a
 * layer, forwards and backwards, and the filters of a pair are made on the way, from four rows of a
 * table (B-splines between even knots, or cubics between uneven ones) or by the filter network for
 * some pairs at a time, so that nothing of the size pairs x filters is ever stored.
 */
#include "system.h"

/* One system and everything its evaluation needs; the same fields as in schnet.py. */
typedef struct {
    atomic_system system;
    integer hidden, filters, layers, half, kind; /* half: of the read-out; kind: of activation */
    integer gaussians, kept; /* kept: filters of the networks are made once, and stored */
    double width;                    /* of the Gaussians, A */
    const REAL *const *weights;      /* embedding; of each layer: atom_in, atom_out, its bias,
                                      * update, its bias (each [in, out]) and the three matrices
                                      * transposed; out_in, its bias, transposed, out, its bias */
    const REAL *table;               /* [intervals + 3, layers, filters]; with uneven knots
                                      * [layers, intervals, 4, filters], powers of the distance from
                                      * the knot before; or NULL: then by */
    const REAL *const *networks;     /* of each layer: filter_in, its bias, filter_out, its bias */
    const double *centres;           /* of the Gaussians, A, [gaussians] */
    const curve *bend;               /* the activation, where kind is TABULATED */
    REAL *work;                      /* [atoms, layers (filters + hidden) + 2 hidden + filters
                                      *  + 2 half + threads filters], and for each thread
                                      * SOME_PAIRS (2 gaussians + 5 filters); if kept, another
                                      * [2, layers, listed, filters] */
} system_call;

integer size_of_pair(void) { return (integer)sizeof(pair); }
integer size_of_call(void) { return (integer)sizeof(system_call); }

/* Pairs whose filters are made together; whole tiles of the matrix product. */
#define SOME_PAIRS (8 * ROWS)
integer pairs_at_a_time(void) { return SOME_PAIRS; }

/* W and, unless it is NULL, W' = dW/dd by the filter network of a layer, [count, filters] each */
static void filters_of(const system_call *c, integer layer, const pair *pairs, integer count,
                       REAL *room, REAL *W, REAL *slope)
{
    const integer g = c->gaussians, f = c->filters;
    const REAL *const *w = c->networks + 4 * layer;
    REAL *const e = room, *const de = e + SOME_PAIRS * g, *const z = de + SOME_PAIRS * g,
               *const dz = z + SOME_PAIRS * f, *const bent = dz + SOME_PAIRS * f;
    for (integer q = 0; q < count; q++)
        for (integer k = 0; k < g; k++) {
            const REAL s = (REAL)((pairs[q].d - c->centres[k]) / c->width);
            e[q * g + k] = EXP((REAL)-0.5 * s * s);
            de[q * g + k] = -s * e[q * g + k] / (REAL)c->width;
        }
    product(count, g, f, e, w[0], w[1], z, 0);
    activate((int)c->kind, c->bend, count * f, z, z, bent, NULL);
    product(count, f, f, z, w[2], w[3], W, 0);
    if (slope) {
        product(count, g, f, de, w[0], NULL, dz, 0);
        for (integer q = 0; q < count * f; q++)
            dz[q] *= bent[q];
        product(count, f, f, dz, w[2], NULL, slope, 0);
    }
    for (integer q = 0; q < count; q++) {
        const double turn = 3.14159265358979323846 / c->system.cutoff;
        const REAL cut = (REAL)(0.5 * (cos(turn * pairs[q].d) + 1)),
                   rate = (REAL)(-0.5 * turn * sin(turn * pairs[q].d));
        for (integer k = q * f; k < (q + 1) * f; k++) {
            if (slope)
                slope[k] = cut * slope[k] + rate * W[k];
            W[k] *= cut;
        }
    }
}

/* Where the filters of a stretch of pairs are made or kept: W, and W' behind it */
typedef struct {
    REAL *room, *W, *slope;
} filter_room;

static filter_room filters_at(const system_call *c, REAL *room, REAL *kept, integer layer,
                              integer pair)
{
    const integer f = c->filters, all = c->layers * c->system.listed * f;
    REAL *W = room + SOME_PAIRS * (2 * c->gaussians + 3 * f), *slope = W + SOME_PAIRS * f;
    if (c->kept) {
        W = kept + (layer * c->system.listed + pair) * f;
        slope = W + all;
    }
    return (filter_room){room, W, slope};
}

/* message[i] += W x[j], message[j] += W x[i] for all pairs of a stretch, by the filter network */
static void convolve_network(const system_call *c, integer layer, integer first, integer count,
                             REAL *room, REAL *kept, const REAL *restrict x,
                             REAL *restrict message)
{
    const integer f = c->filters;
    for (integer begin = first; begin < first + count; begin += SOME_PAIRS) {
        const pair *p = (const pair *)c->system.pairs + begin;
        const integer left = first + count - begin, some = left < SOME_PAIRS ? left : SOME_PAIRS;
        const filter_room at = filters_at(c, room, kept, layer, begin);
        filters_of(c, layer, p, some, at.room, at.W, c->kept ? at.slope : NULL);
        for (integer q = 0; q < some; q++) {
            const REAL *W = at.W + q * f, *xi = x + p[q].i * f, *xj = x + p[q].j * f;
            for (integer k = 0; k < f; k++)
                message[p[q].i * f + k] += W[k] * xj[k];
            for (integer k = 0; k < f; k++)
                message[p[q].j * f + k] += W[k] * xi[k];
        }
    }
}

/* The same for the gradients, and the pairs' dE/dd; see transpose() */
static void transpose_network(const system_call *c, integer layer, integer first, integer count,
                              REAL *room, REAL *kept, const REAL *restrict x,
                              const REAL *restrict g, REAL *restrict y)
{
    const integer f = c->filters;
    for (integer begin = first; begin < first + count; begin += SOME_PAIRS) {
        pair *p = (pair *)c->system.pairs + begin;
        const integer left = first + count - begin, some = left < SOME_PAIRS ? left : SOME_PAIRS;
        const filter_room at = filters_at(c, room, kept, layer, begin);
        if (!c->kept)
            filters_of(c, layer, p, some, at.room, at.W, at.slope);
        for (integer q = 0; q < some; q++) {
            const REAL *W = at.W + q * f, *slope = at.slope + q * f;
            const REAL *xi = x + p[q].i * f, *xj = x + p[q].j * f, *gi = g + p[q].i * f,
                       *gj = g + p[q].j * f;
            REAL sum = 0;
            for (integer k = 0; k < f; k++) {
                y[p[q].i * f + k] += W[k] * gj[k];
                sum += slope[k] * (gi[k] * xj[k] + gj[k] * xi[k]);
            }
            for (integer k = 0; k < f; k++)
                y[p[q].j * f + k] += W[k] * gi[k];
            p[q].pull += (double)sum;
        }
    }
}

/* dE/dr of a pair from dE/dd */
static void gradient(const pair *p, double *to)
{
    for (int e = 0; e < 3; e++)
        to[e] = p->pull / p->d * p->r[e];
}

static void evaluate(const void *call, integer thread)
{
    const system_call *c = call;
    const atomic_system *g = &c->system;
    const integer n = g->atoms, hidden = c->hidden, filters = c->filters, layers = c->layers,
                  half = c->half, nh = n * hidden, nf = n * filters;
    /* Of the table: numbers in a row, and from one layer to the next */
    const integer columns = g->knots ? filters : layers * filters,
                  along = g->knots ? 4 * g->intervals * filters : filters;
    integer rows;
    const integer a0 = rows_of(g, thread, &rows), a1 = a0 + rows, h0 = a0 * hidden,
                  f0 = a0 * filters;
    for (integer a = a0; a < a1; a++)
        g->neighbours[g->atom_of[a]] = 0;
    BARRIER
    const integer p0 = measure(g, thread, sizeof(pair)), count = g->stretch[3 * thread];
    pair *const pairs = (pair *)g->pairs + p0;

    REAL *const x = c->work, *const bent = x + layers * nf, *const h = bent + layers * nh,
               *const u = h + nh, *const message = u + nh, *const head = message + nf,
               *const head_bent = head + n * half, *const sent = head_bent + n * half,
               *const mine = sent + thread * nf,
               *const rooms = sent + g->threads * nf;
    const integer some = SOME_PAIRS * (2 * c->gaussians + 5 * filters);
    REAL *const room = rooms + thread * some, *const kept = rooms + g->threads * some;
    for (integer a = a0; a < a1; a++)
        memcpy(h + a * hidden, c->weights[0] + g->species[g->atom_of[a]] * hidden,
               (size_t)hidden * sizeof(REAL));
    for (integer l = 0; l < layers; l++) {
        const REAL *const *w = c->weights + 1 + 8 * l;
        product(rows, hidden, filters, h + h0, w[0], NULL, x + l * nf + f0, 0);
        clear(g, sent, filters, thread, a0, a1);
        BARRIER
        if (c->table)
            for (integer q = 0; q < count; q++)
                convolve(pairs + q, c->table + l * along, columns, filters, x + l * nf, mine);
        else
            convolve_network(c, l, p0, count, room, kept, x + l * nf, mine);
        BARRIER
        gather(g, sent, filters, a0, a1);
        product(rows, filters, hidden, sent + f0, w[1], w[2], u + h0, 0);
        activate((int)c->kind, c->bend, rows * hidden, u + h0, u + h0, bent + l * nh + h0, NULL);
        product(rows, hidden, hidden, u + h0, w[3], w[4], h + h0, 1);
        BARRIER
    }
    const REAL *const *out = c->weights + 1 + 8 * layers;
    REAL *const own_head = head + a0 * half, *const own_bent = head_bent + a0 * half;
    product(rows, hidden, half, h + h0, out[0], out[1], own_head, 0);
    activate((int)c->kind, c->bend, rows * half, own_head, own_head, own_bent, NULL);
    for (integer a = a0; a < a1; a++) {
        double sum = (double)out[4][0];
        for (integer q = a * half; q < (a + 1) * half; q++) {
            sum += (double)(head[q] * out[3][q - a * half]);
            head_bent[q] *= out[3][q - a * half];
        }
        g->energy[g->atom_of[a]] = sum;
    }

    REAL *const gh = h; /* from here on dE/dh */
    product(rows, half, hidden, own_bent, out[2], NULL, gh + h0, 0);
    for (integer l = layers - 1; l >= 0; l--) {
        const REAL *const *w = c->weights + 1 + 8 * l;
        product(rows, hidden, hidden, gh + h0, w[7], NULL, u + h0, 0);
        for (integer q = h0; q < h0 + rows * hidden; q++)
            u[q] *= bent[l * nh + q];
        product(rows, hidden, filters, u + h0, w[6], NULL, message + f0, 0);
        clear(g, sent, filters, thread, a0, a1);
        BARRIER
        if (c->table)
            for (integer q = 0; q < count; q++)
                transpose(pairs + q, c->table + l * along, columns, filters, x + l * nf, message,
                          mine);
        else
            transpose_network(c, l, p0, count, room, kept, x + l * nf, message, mine);
        BARRIER
        if (l > 0) { /* the embedding does not depend on positions */
            gather(g, sent, filters, a0, a1);
            product(rows, filters, hidden, sent + f0, w[5], NULL, gh + h0, 1);
        }
        BARRIER
    }

    pull_atoms(g, thread, p0, sizeof(pair), gradient);
}

void schnet(const system_call *call)
{
    if (by_threads(call, call->system.threads, evaluate))
        return;
    system_call alone = *call; /* room for more threads is room for one */
    alone.system.threads = 1;
    evaluate(&alone, 0);
}

/* SchNet: atom energies, forces and virial of one system.
 *
 * Compiled at run time, once for float and once for double (REAL), see build.py. The arithmetic is
 * that of potentials/networks/schnet.py; names are the same. A half list of pairs is gone through twice a
 * layer, forwards and backwards, and the filters of a pair are made on the way, from four rows of
 * the table (filter_knots) or by the filter network for some pairs at a time, so that nothing of
 * the size pairs x filters is ever stored.
 *
 * Threads share out rows of atoms and, apart from that, stretches of the list. Each adds what its
 * pairs send into an array of its own; these are summed in a fixed order, so that a given number of
 * threads gives the same result every time.
 */
#include "schnet_common.h"

#ifdef _OPENMP
#define BARRIER _Pragma("omp barrier")
#else
#define BARRIER
#endif

/* One system and everything its evaluation needs; the same fields as in schnet.py. */
typedef struct {
    integer atoms, listed;                                  /* pairs listed: a half list */
    integer hidden, filters, layers, half, intervals, kind; /* half: of the read-out */
    integer threads, gaussians, kept; /* kept: filters of the networks are made once, and stored */
    double cutoff, spacing, width;   /* A; of the table's knots and of the Gaussians */
    const double *positions;         /* A, [atoms, 3] */
    const integer *atom_of;          /* rows of features are atoms in an order that keeps neighbours
                                      * close together in memory, [atoms]; the list is of rows */
    const integer *list;             /* [2, listed] */
    const double *offsets;           /* cell vectors between the atoms of a pair, A, or NULL */
    const integer *species;          /* [atoms] */
    const REAL *const *weights;      /* embedding; of each layer: atom_in, atom_out, its bias,
                                      * update, its bias (each [in, out]) and the three matrices
                                      * transposed; out_in, its bias, transposed, out, its bias */
    const REAL *table;               /* [intervals + 3, layers, filters], or NULL: then by */
    const REAL *const *networks;     /* of each layer: filter_in, its bias, filter_out, its bias */
    const double *centres;           /* of the Gaussians, A, [gaussians] */
    const curve *bend;               /* the activation, where kind is TABULATED */
    REAL *work;                      /* [atoms, layers (filters + hidden) + 2 hidden + filters
                                      *  + 2 half + threads filters], and for each thread
                                      * SOME_PAIRS (2 gaussians + 5 filters); if kept, another
                                      * [2, layers, listed, filters] */
    pair *pairs;                     /* [listed] */
    double *sums;                    /* [threads, 3 atoms + 9] */
    integer *stretch;                /* [threads, 3]: pairs in the cutoff, first and last atom */
    double *energy, *force, *virial; /* of the network: [atoms], [atoms, 3], dE/d strain [3, 3] */
    integer *neighbours;             /* within the cutoff, [atoms] */
    double *closest; /* shortest distance of a pair, A, of each thread and then of all: [threads] */
} system_call;

integer size_of_pair(void) { return (integer)sizeof(pair); }
integer size_of_call(void) { return (integer)sizeof(system_call); }

/* Pairs whose filters are made together; whole tiles of the matrix product. */
#define SOME_PAIRS (8 * ROWS)
integer pairs_at_a_time(void) { return SOME_PAIRS; }

/* Geometry of the pairs of one thread's stretch that are within the cutoff, to its beginning. */
static void measure(const system_call *c, integer begin, integer end, integer *stretch,
                    double *closest)
{
    const double limit = c->cutoff * c->cutoff;
    integer count = 0, first = c->atoms, last = -1;
    *closest = INFINITY;
    for (integer q = begin; q < end; q++) {
        pair *p = c->pairs + begin + count;
        const integer i = c->list[q], j = c->list[c->listed + q], a = c->atom_of[i],
                      b = c->atom_of[j];
        p->i = i;
        p->j = j;
        double square = 0;
        for (int e = 0; e < 3; e++) {
            p->r[e] = c->positions[3 * b + e] - c->positions[3 * a + e];
            if (c->offsets)
                p->r[e] += c->offsets[3 * q + e];
            square += p->r[e] * p->r[e];
        }
        if (!(square < limit))
            continue;
        p->d = sqrt(square);
        *closest = p->d < *closest ? p->d : *closest;
        p->pull = 0;
        if (c->table)
            locate(p, c->intervals, c->spacing);
#ifdef _OPENMP
#pragma omp atomic
#endif
        c->neighbours[a]++;
#ifdef _OPENMP
#pragma omp atomic
#endif
        c->neighbours[b]++;
        first = i < first ? i : first;
        first = j < first ? j : first;
        last = i > last ? i : last;
        last = j > last ? j : last;
        count++;
    }
    stretch[0] = count;
    stretch[1] = first;
    stretch[2] = last;
}

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
        const double turn = 3.14159265358979323846 / c->cutoff;
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
    const integer f = c->filters, all = c->layers * c->listed * f;
    REAL *W = room + SOME_PAIRS * (2 * c->gaussians + 3 * f), *slope = W + SOME_PAIRS * f;
    if (c->kept) {
        W = kept + (layer * c->listed + pair) * f;
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
        const pair *p = c->pairs + begin;
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
        pair *p = c->pairs + begin;
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

/* own += what the other threads' pairs have sent to these rows, in the order of the threads */
static void gather(const system_call *c, REAL *sent, integer begin, integer end)
{
    const integer f = c->filters;
    for (integer t = 1; t < c->threads; t++) {
        const integer from = c->stretch[3 * t + 1] > begin ? c->stretch[3 * t + 1] : begin,
                      to = c->stretch[3 * t + 2] + 1 < end ? c->stretch[3 * t + 2] + 1 : end;
        const REAL *theirs = sent + t * c->atoms * f;
        for (integer q = from * f; q < to * f; q++)
            sent[q] += theirs[q];
    }
}

/* Zero the rows where the sums go, and those that this thread's pairs send to. */
static void clear(const system_call *c, REAL *sent, integer thread, integer begin, integer end)
{
    const integer f = c->filters, from = c->stretch[3 * thread + 1],
                  to = c->stretch[3 * thread + 2] + 1;
    if (begin < end)
        memset(sent + begin * f, 0, (size_t)((end - begin) * f) * sizeof(REAL));
    if (thread > 0 && from < to)
        memset(sent + (thread * c->atoms + from) * f, 0, (size_t)((to - from) * f) * sizeof(REAL));
}

static void evaluate(const system_call *c, integer thread)
{
    const integer n = c->atoms, hidden = c->hidden, filters = c->filters, layers = c->layers,
                  half = c->half, columns = layers * filters, nh = n * hidden, nf = n * filters;
    /* Rows of this thread, whole tiles of the matrix product */
    const integer tiles = (n + ROWS - 1) / ROWS;
    const integer a0 = tiles * thread / c->threads * ROWS;
    integer a1 = tiles * (thread + 1) / c->threads * ROWS;
    a1 = a1 < n ? a1 : n;
    const integer rows = a1 > a0 ? a1 - a0 : 0, h0 = a0 * hidden, f0 = a0 * filters;

    for (integer a = a0; a < a1; a++)
        c->neighbours[c->atom_of[a]] = 0;
    BARRIER
    integer *stretch = c->stretch + 3 * thread;
    const integer p0 = c->listed * thread / c->threads,
                  p1 = c->listed * (thread + 1) / c->threads;
    measure(c, p0, p1, stretch, c->closest + thread);
    pair *const pairs = c->pairs + p0;
    const integer count = stretch[0];

    REAL *const x = c->work, *const bent = x + layers * nf, *const h = bent + layers * nh,
               *const u = h + nh, *const message = u + nh, *const head = message + nf,
               *const head_bent = head + n * half, *const sent = head_bent + n * half,
               *const mine = sent + thread * nf,
               *const rooms = sent + c->threads * nf;
    const integer some = SOME_PAIRS * (2 * c->gaussians + 5 * filters);
    REAL *const room = rooms + thread * some, *const kept = rooms + c->threads * some;
    for (integer a = a0; a < a1; a++)
        memcpy(h + a * hidden, c->weights[0] + c->species[c->atom_of[a]] * hidden,
               (size_t)hidden * sizeof(REAL));
    for (integer l = 0; l < layers; l++) {
        const REAL *const *w = c->weights + 1 + 8 * l;
        product(rows, hidden, filters, h + h0, w[0], NULL, x + l * nf + f0, 0);
        clear(c, sent, thread, a0, a1);
        BARRIER
        if (c->table)
            for (integer q = 0; q < count; q++)
                convolve(pairs + q, c->table + l * filters, columns, filters, x + l * nf, mine);
        else
            convolve_network(c, l, p0, count, room, kept, x + l * nf, mine);
        BARRIER
        gather(c, sent, a0, a1);
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
        c->energy[c->atom_of[a]] = sum;
    }

    REAL *const g = h; /* from here on dE/dh */
    product(rows, half, hidden, own_bent, out[2], NULL, g + h0, 0);
    for (integer l = layers - 1; l >= 0; l--) {
        const REAL *const *w = c->weights + 1 + 8 * l;
        product(rows, hidden, hidden, g + h0, w[7], NULL, u + h0, 0);
        for (integer q = h0; q < h0 + rows * hidden; q++)
            u[q] *= bent[l * nh + q];
        product(rows, hidden, filters, u + h0, w[6], NULL, message + f0, 0);
        clear(c, sent, thread, a0, a1);
        BARRIER
        if (c->table)
            for (integer q = 0; q < count; q++)
                transpose(pairs + q, c->table + l * filters, columns, filters, x + l * nf, message,
                          mine);
        else
            transpose_network(c, l, p0, count, room, kept, x + l * nf, message, mine);
        BARRIER
        if (l > 0) { /* the embedding does not depend on positions */
            gather(c, sent, a0, a1);
            product(rows, filters, hidden, sent + f0, w[5], NULL, g + h0, 1);
        }
        BARRIER
    }

    double *const force = c->sums + thread * (3 * n + 9), *const virial = force + 3 * n;
    memset(force, 0, (size_t)(3 * n + 9) * sizeof(double));
    for (integer q = 0; q < count; q++) {
        const pair *p = pairs + q;
        for (int e = 0; e < 3; e++) {
            const double pull = p->pull / p->d * p->r[e];
            force[3 * p->i + e] += pull;
            force[3 * p->j + e] -= pull;
            for (int s = 0; s < 3; s++)
                virial[3 * e + s] += pull * p->r[s];
        }
    }
    BARRIER
    for (integer a = a0; a < a1; a++)
        for (int e = 0; e < 3; e++) {
            double sum = 0;
            for (integer t = 0; t < c->threads; t++)
                sum += c->sums[t * (3 * n + 9) + 3 * a + e];
            c->force[3 * c->atom_of[a] + e] = sum;
        }
    if (thread == 0) {
        for (integer t = 1; t < c->threads; t++)
            *c->closest = c->closest[t] < *c->closest ? c->closest[t] : *c->closest;
        for (integer q = 0; q < 9; q++) {
            c->virial[q] = 0;
            for (integer t = 0; t < c->threads; t++)
                c->virial[q] += c->sums[t * (3 * n + 9) + 3 * n + q];
        }
    }
}

void schnet(const system_call *call)
{
#ifdef _OPENMP
    if (call->threads > 1) {
        /* Fewer threads than asked for would leave stretches out. */
        int got = 0;
#pragma omp parallel num_threads((int)call->threads)
        {
#pragma omp single
            got = omp_get_num_threads();
            if (got == (int)call->threads)
                evaluate(call, omp_get_thread_num());
        }
        if (got == (int)call->threads)
            return;
    }
#endif
    system_call alone = *call; /* room for more threads is room for one */
    alone.threads = 1;
    evaluate(&alone, 0);
}

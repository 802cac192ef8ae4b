/* PaiNN: atom energies, forces and virial of one system; compiled at run time, see build.py. */
#include "painn_common.h"
#include "system.h"

/* One system and everything its evaluation needs; the same fields as in painn.py. */
typedef struct {
    atomic_system system;
    integer F, layers, half;          /* features; blocks; of the read-out */
    integer kind, head;               /* of activations, before and in the read-out */
    double softening;
    const REAL *const *weights;       /* embedding; of each block block_weights; out_in, its bias,
                                       * transposed, out, its bias */
    const REAL *elements;             /* phi of the first block, [elements, 3F] */
    const REAL *table;                /* [intervals + 3, layers, 3F] */
    const curve *bend, *head_bend;    /* the activations, where kind and head are TABULATED */
    REAL *work;                       /* [atoms, numbers_of_atom()] */
} system_call;

integer size_of_pair(void) { return (integer)sizeof(ray); }
integer size_of_call(void) { return (integer)sizeof(system_call); }

/* Kept of each block, [n, KEPT F]; and what all of them use in turn. */
#define KEPT 20
typedef struct {
    REAL *kept, *s, *turned, *z, *gs, *gv, *room, *head, *head_bent, *sent;
} places;

static places lay_out(integer n, integer F, integer layers, integer half, REAL *work)
{
    places p;
    REAL *at = work;
#define PLACE(name, width)                                                                         \
    p.name = at;                                                                                   \
    at += n * (width)
    PLACE(kept, layers * KEPT * F);
    PLACE(s, F);
    PLACE(turned, 3 * F);
    PLACE(z, F);
    PLACE(gs, F);
    PLACE(gv, 3 * F);
    PLACE(room, 9 * F);
    PLACE(head, half);
    PLACE(head_bent, half);
    PLACE(sent, 0); /* [threads, n, 6F]; a row: phi or s, and v */
#undef PLACE
    return p;
}

integer numbers_of_atom(integer F, integer layers, integer half, integer threads)
{
    return (layers * KEPT + 18 + 6 * threads) * F + 2 * half;
}

static block block_at(const system_call *c, const places *p, integer layer)
{
    const integer nF = c->system.atoms * c->F;
    REAL *at = p->kept + layer * KEPT * nF;
    block b = {.s = p->s, .turned = p->turned, .z = p->z, .y = p->z};
    b.z_bent = at;
    b.phi = layer ? at + nF : (REAL *)c->elements; /* which nobody writes to */
    b.v = at + 4 * nF;
    b.joined = at + 7 * nF;
    b.mixed = at + 9 * nF;
    b.dot = at + 15 * nF;
    b.y_bent = at + 16 * nF;
    b.a = at + 17 * nF;
    return b;
}

static void evaluate(const void *call, integer thread)
{
    const system_call *c = call;
    const atomic_system *g = &c->system;
    const integer n = g->atoms, F = c->F, layers = c->layers, half = c->half,
                  columns = 3 * layers * F;
    const activation act = {(int)c->kind, c->bend};
    const places p = lay_out(n, F, layers, half, c->work);
    integer rows;
    const integer a0 = rows_of(g, thread, &rows), a1 = a0 + rows;
    for (integer a = a0; a < a1; a++)
        g->neighbours[g->atom_of[a]] = 0;
    BARRIER
    const integer begin = measure(g, thread, sizeof(ray)), count = g->stretch[3 * thread];
    ray *const rays = (ray *)g->pairs + begin;
    for (integer q = 0; q < count; q++)
        point(rays + q);

    REAL *const mine = p.sent + thread * n * 6 * F, *const room = p.room + a0 * 9 * F;
    for (integer a = a0; a < a1; a++)
        memcpy(p.s + a * F, c->weights[0] + g->species[g->atom_of[a]] * F,
               (size_t)F * sizeof(REAL));
    for (integer l = 0; l < layers; l++) {
        const block_weights w = weights_of(c->weights, l);
        const block b = block_at(c, &p, l), after = block_at(c, &p, l + 1);
        if (l)
            phi_of(&b, &w, act, a0, rows, F, room);
        clear(g, p.sent, 4 * F, thread, a0, a1);
        BARRIER
        for (integer q = 0; q < count; q++) {
            const integer i = rays[q].p.i, j = rays[q].p.j;
            send(rays + q, F, c->table + 3 * l * F, columns, b.phi, l ? i : g->species[g->atom_of[i]],
                 l ? j : g->species[g->atom_of[j]], l ? b.v : NULL,
                 p.sent + thread * n * 4 * F, 4 * F, p.sent + thread * n * 4 * F + F, 4 * F);
        }
        BARRIER
        gather(g, p.sent, 4 * F, a0, a1);
        for (integer a = a0; a < a1; a++) {
            const REAL *from = p.sent + a * 4 * F, *old = b.v + a * 3 * F;
            for (integer f = 0; f < F; f++)
                b.joined[a * 2 * F + f] = p.s[a * F + f] + from[f];
            for (integer f = 0; f < 3 * F; f++)
                b.turned[a * 3 * F + f] = from[F + f] + (l ? old[f] : 0);
        }
        update_of(&b, &w, act, (REAL)c->softening, a0, rows, F, p.s,
                  l + 1 < layers ? after.v : NULL, room);
        BARRIER
    }
    const REAL *const *out = c->weights + 1 + WEIGHTS * layers;
    REAL *const head = p.head + a0 * half, *const bent = p.head_bent + a0 * half;
    product(rows, F, half, p.s + a0 * F, out[0], out[1], head, 0);
    activate((int)c->head, c->head_bend, rows * half, head, head, bent, NULL);
    for (integer a = 0; a < rows; a++) {
        double sum = (double)out[4][0];
        for (integer q = a * half, k = 0; k < half; q++, k++) {
            sum += (double)(head[q] * out[3][k]);
            bent[q] *= out[3][k];
        }
        g->energy[g->atom_of[a0 + a]] = sum;
    }

    product(rows, half, F, bent, out[2], NULL, p.gs + a0 * F, 0);
    for (integer l = layers - 1; l >= 0; l--) {
        const block_weights w = weights_of(c->weights, l);
        const block b = block_at(c, &p, l);
        update_back(&b, &w, a0, rows, F, l + 1 < layers, p.gs + a0 * F, p.gv + a0 * 3 * F, room,
                    room + rows * F, room + rows * 3 * F);
        if (l)
            clear(g, p.sent, 6 * F, thread, a0, a1);
        BARRIER
        for (integer q = 0; q < count; q++) {
            const integer i = rays[q].p.i, j = rays[q].p.j;
            send_back(rays + q, F, c->table + 3 * l * F, columns, b.phi, l ? i : g->species[g->atom_of[i]],
                      l ? j : g->species[g->atom_of[j]], l ? b.v : NULL, p.gs, p.gv, mine,
                      mine + 3 * F, 6 * F);
        }
        BARRIER
        if (l) { /* the embedding does not depend on positions */
            gather(g, p.sent, 6 * F, a0, a1);
            for (integer a = a0; a < a1; a++)
                for (integer f = 0; f < 3 * F; f++)
                    p.gv[a * 3 * F + f] += p.sent[a * 6 * F + 3 * F + f];
            phi_back(&b, &w, a0, rows, F, p.sent + a0 * 6 * F, 6 * F, p.gs + a0 * F, room,
                     room + rows * F);
        }
        BARRIER
    }
    pull_atoms(g, thread, begin, sizeof(ray), gradient_of_ray);
}

void painn(const system_call *call)
{
    if (by_threads(call, call->system.threads, evaluate))
        return;
    system_call alone = *call; /* room for more threads is room for one */
    alone.system.threads = 1;
    evaluate(&alone, 0);
}

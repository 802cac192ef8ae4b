/* What PaiNN's atoms send each other; names as in potentials/networks/painn.py.
 *
 * Both directions of a pair at once, as many features at a time as a register holds: the filters
 * of the pair, from four rows of the table, never leave the registers.
 */
#ifndef DCASE_PAINN_PAIRS_H
#define DCASE_PAINN_PAIRS_H

#include "schnet_common.h"

/* A pair, the unit vector of r, and of what depends on it: dE/du; and along a direction: du. */
typedef struct {
    pair p;
    REAL u[3], du[3];
    double turn[3];
} ray;

/* When its distance and vector are known. */
static void point(ray *y)
{
    y->p.pull = 0;
    for (int c = 0; c < 3; c++) {
        y->u[c] = (REAL)(y->p.r[c] / y->p.d);
        y->turn[c] = 0;
    }
}

/* dE/dr of a ray from dE/dd and dE/du, with u = r / d */
static void gradient_of_ray(const pair *p, double *to)
{
    const ray *y = (const ray *)p;
    double along = 0;
    for (int c = 0; c < 3; c++)
        along += y->turn[c] * p->r[c];
    for (int c = 0; c < 3; c++)
        to[c] = (p->pull * p->r[c] + y->turn[c] - along * p->r[c] / (p->d * p->d)) / p->d;
}

/* All functions with vectors among arguments and results are inlined: no calling convention. */
#pragma GCC diagnostic ignored "-Wpsabi"
#define INLINED static inline __attribute__((always_inline))

/* As vector, of values; what there are no registers for is kept aligned. */
typedef REAL wide __attribute__((vector_size(VECTOR_BYTES)));

/* Features side by side, WIDTH or (the last of a row) fewer; zeros behind these. */
INLINED wide take(const REAL *from, integer lanes)
{
    if (lanes == WIDTH)
        return *(const vector *)from;
    wide some = {0};
    memcpy(&some, from, (size_t)lanes * sizeof(REAL));
    return some;
}

INLINED void put(REAL *to, wide what, integer lanes)
{
    if (lanes == WIDTH)
        *(vector *)to = what;
    else
        memcpy(to, &what, (size_t)lanes * sizeof(REAL));
}

INLINED void add(REAL *to, wide what, integer lanes) { put(to, take(to, lanes) + what, lanes); }

INLINED REAL total(wide what)
{
    REAL sum = 0;
    for (integer c = 0; c < WIDTH; c++)
        sum += what[c];
    return sum;
}

/* Statements with f, the first feature, and their number lanes, for all of F */
#define FOR_LANES(...)                                                                             \
    for (integer f = 0; f < F; f += WIDTH)                                                         \
        if (F - f >= WIDTH) {                                                                      \
            const integer lanes = WIDTH;                                                           \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            const integer lanes = F - f;                                                           \
            __VA_ARGS__;                                                                           \
        }

/* Of an atom, some features of v or what belongs to it */
typedef struct {
    wide x[3];
} arrow;

INLINED arrow take_arrow(const REAL *from, integer F, integer lanes)
{
    return (arrow){{take(from, lanes), take(from + F, lanes), take(from + 2 * F, lanes)}};
}

INLINED wide dot(arrow a, arrow b)
{
    return a.x[0] * b.x[0] + a.x[1] * b.x[1] + a.x[2] * b.x[2];
}

INLINED wide along(arrow a, const REAL u[3])
{
    return a.x[0] * u[0] + a.x[1] * u[1] + a.x[2] * u[2];
}

/* Filters of a pair, or what belongs to them, some features: to s, along u, and to v (before there
 * are vectors: none of these) */
typedef struct {
    wide s, u, v;
} filters;

/* By the weights of four rows, from the place of the first one in the table */
INLINED filters filters_at(const REAL weight[4], const REAL *at, integer columns, integer F,
                           integer lanes, int vectors)
{
    filters W = {{0}, {0}, {0}};
    for (int k = 0; k < 4; k++) {
        const REAL *row = at + k * columns;
        W.s += weight[k] * take(row, lanes);
        W.u += weight[k] * take(row + F, lanes);
        if (vectors)
            W.v += weight[k] * take(row + 2 * F, lanes);
    }
    return W;
}

/* One direction: phi and v of the sender, what is added to s and v of the receiver, and the unit
 * wide from the receiver to the sender. */
INLINED void send_to(integer F, integer lanes, filters W, const REAL u[3], const REAL *phi,
                     const REAL *v, int vectors, REAL *to_s, REAL *to_v)
{
    const wide by_u = W.u * take(phi + F, lanes);
    add(to_s, W.s * take(phi, lanes), lanes);
    if (vectors) {
        const wide keep = W.v * take(phi + 2 * F, lanes);
        for (int c = 0; c < 3; c++)
            add(to_v + c * F, by_u * u[c] + keep * take(v + c * F, lanes), lanes);
    } else
        for (int c = 0; c < 3; c++)
            add(to_v + c * F, by_u * u[c], lanes);
}

static void opposite(const REAL u[3], REAL to[3])
{
    for (int c = 0; c < 3; c++)
        to[c] = -u[c];
}

/* Both directions of a pair; table: of the block, with rows of so many columns; row_i, row_j: of phi,
 * the atoms or (first block) their elements. v may be NULL: there is none yet. What is added to s and
 * v of the receivers comes in rows of s_row and v_row numbers. */
static void send(const ray *y, integer F, const REAL *table, integer columns, const REAL *phi,
                 integer row_i, integer row_j, const REAL *v, REAL *to_s, integer s_row,
                 REAL *to_v, integer v_row)
{
    const integer i = y->p.i, j = y->p.j;
    const REAL *at = table + y->p.row * columns, *from_i = phi + row_i * 3 * F,
               *from_j = phi + row_j * 3 * F, *v_i = v ? v + i * 3 * F : phi,
               *v_j = v ? v + j * 3 * F : phi;
    REAL *s_to_i = to_s + i * s_row, *s_to_j = to_s + j * s_row, *v_to_i = to_v + i * v_row,
         *v_to_j = to_v + j * v_row, back[3];
    opposite(y->u, back);
#define SEND(vectors)                                                                              \
    FOR_LANES(const filters W = filters_at(y->p.value, at + f, columns, F, lanes, vectors);        \
              send_to(F, lanes, W, y->u, from_j + f, v_j + f, vectors, s_to_i + f, v_to_i + f);    \
              send_to(F, lanes, W, back, from_i + f, v_i + f, vectors, s_to_j + f, v_to_j + f))
    if (v)
        SEND(1)
    else
        SEND(0)
#undef SEND
}

/* Gradients of one direction, from those by s and v of the receiver (gs, gv): by the sender's phi
 * and v, added to, unless there is no v yet, and with it nothing before phi that moves; by the
 * distance and by u, added to. */
INLINED void send_back_to(integer F, integer lanes, filters W, filters slope, const REAL u[3],
                          const REAL *phi, const REAL *v, int vectors, const REAL *gs,
                          const REAL *gv, REAL *to_phi, REAL *to_v, wide *pull, arrow *to_u,
                          REAL sign)
{
    const arrow g = take_arrow(gv, F, lanes);
    const wide by_s = take(gs, lanes), by_u = along(g, u), phi_u = take(phi + F, lanes),
                 carried = sign * W.u * phi_u;
    *pull += slope.s * take(phi, lanes) * by_s + slope.u * phi_u * by_u;
    for (int c = 0; c < 3; c++)
        to_u->x[c] += carried * g.x[c];
    if (vectors) {
        const wide by_v = dot(g, take_arrow(v, F, lanes)), phi_v = take(phi + 2 * F, lanes),
                     keep = W.v * phi_v;
        *pull += slope.v * phi_v * by_v;
        add(to_phi, W.s * by_s, lanes);
        add(to_phi + F, W.u * by_u, lanes);
        add(to_phi + 2 * F, W.v * by_v, lanes);
        for (int c = 0; c < 3; c++)
            add(to_v + c * F, keep * g.x[c], lanes);
    }
}

/* Both directions; to_phi and to_v come in rows of so many numbers */
static void send_back(ray *y, integer F, const REAL *table, integer columns, const REAL *phi,
                      integer row_i, integer row_j, const REAL *v, const REAL *gs, const REAL *gv,
                      REAL *to_phi, REAL *to_v, integer row)
{
    const integer i = y->p.i, j = y->p.j;
    const REAL *at = table + y->p.row * columns, *from_i = phi + row_i * 3 * F,
               *from_j = phi + row_j * 3 * F, *v_i = v ? v + i * 3 * F : phi,
               *v_j = v ? v + j * 3 * F : phi;
    const REAL *gs_i = gs + i * F, *gs_j = gs + j * F, *gv_i = gv + i * 3 * F,
               *gv_j = gv + j * 3 * F;
    REAL *phi_i = to_phi + i * row, *phi_j = to_phi + j * row, *to_v_i = to_v + i * row,
         *to_v_j = to_v + j * row, back[3];
    wide pull = {0};
    arrow turn = {{{0}, {0}, {0}}};
    opposite(y->u, back);
#define SEND_BACK(vectors)                                                                         \
    FOR_LANES(                                                                                     \
        const filters W = filters_at(y->p.value, at + f, columns, F, lanes, vectors);              \
        const filters slope = filters_at(y->p.slope, at + f, columns, F, lanes, vectors);          \
        send_back_to(F, lanes, W, slope, y->u, from_j + f, v_j + f, vectors, gs_i + f, gv_i + f,   \
                     phi_j + f, to_v_j + f, &pull, &turn, 1);                                      \
        send_back_to(F, lanes, W, slope, back, from_i + f, v_i + f, vectors, gs_j + f, gv_j + f,   \
                     phi_i + f, to_v_i + f, &pull, &turn, -1))
    if (v)
        SEND_BACK(1)
    else
        SEND_BACK(0)
#undef SEND_BACK
    y->p.pull += (double)total(pull);
    for (int c = 0; c < 3; c++)
        y->turn[c] += (double)total(turn.x[c]);
}

#endif

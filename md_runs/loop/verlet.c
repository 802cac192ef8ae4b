/* Velocity Verlet or Langevin dynamics, many steps a call, with forces from a compiled potential.
 *
 * The operations are those of ase.md.verlet.VelocityVerlet and ase.md.langevin.Langevin in their
 * order, each rounded by itself (see build.py: neither reordered nor fused), so that positions and
 * momenta are the same to the last bit. With noise a = c3 xi - c4 eta and b = c5 eta:
 *
 *     Verlet    p += (dt/2) f;  x += (dt p) / m;  f = F(x);  p += (dt/2) f
 *     Langevin  v += (c1 f) / m - c2 v + a;  x += dt v + b;  v = (change of x - b) / dt;
 *               f = F(x);  v += (c1 f) / m - c2 v + a
 *
 * A step that needs a new list of neighbours, or that has left physics, is not done: the caller has
 * the state before it, and ways to find out more.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef int64_t integer;

enum { DONE, NEW_PAIRS, UNPHYSICAL };

/* The same fields as in compiled_blocks.py. */
typedef struct {
    integer atoms, bonds;
    double dt;             /* ASE's unit of time */
    double scale, offset;  /* eV: E = scale (sum of the network's energies) + offset */
    double skin;           /* (skin/2)^2, A^2: how far atoms may be from where pairs were listed */
    double stretch;        /* longest stretch of a bond, A; negative: not looked at */
    double heat;           /* highest kinetic energy, eV */
    double nearest;        /* A: closer pairs are not for the compiled potential */
    integer lonely;        /* whether atoms without neighbours are allowed */
    const double *masses;  /* amu, [atoms] */
    const double *listed;  /* A, [atoms, 3]: where the pairs were listed */
    const integer *bond;   /* [2, bonds] */
    const double *shift;   /* A, [bonds, 3], between the cells of the bonded atoms */
    const double *lengths; /* A, [bonds], at the start */
    double c1, c2;         /* Langevin's constants; */
    const double *c3, *c4, *c5; /* [atoms], c3 NULL for Verlet */
    double *x, *p, *f;     /* the state: A, amu A / time, eV/A, [atoms, 3]; x is the potential's */
    const double *energies, *forces; /* of the network: [atoms], [atoms, 3] */
    const integer *neighbours;       /* [atoms] */
    const double *closest;           /* shortest distance of a pair, A */
    void (*evaluate)(const void *);
    const void *potential;
    double seconds; /* spent in the potential, added to */
} verlet_run;

integer size_of_run(void) { return (integer)sizeof(verlet_run); }

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Langevin's kick, with the noise xi, eta of this step */
static double kicked(const verlet_run *s, integer a, double v, double f, double xi, double eta)
{
    const double noise = s->c3[a] * xi - s->c4[a] * eta;
    const double change = s->c1 * f / s->masses[a] - s->c2 * v + noise;
    return v + change;
}

/* The first half of a step and the move; whether all atoms stay in reach of the list */
static int move(verlet_run *s, const double *noise)
{
    const integer n = 3 * s->atoms;
    const double half = 0.5 * s->dt;
    int covered = 1;
    for (integer a = 0; a < s->atoms; a++) {
        double moved = 0;
        for (integer q = 3 * a; q < 3 * a + 3; q++) {
            if (s->c3) {
                const double eta = noise[n + q], shift = s->c5[a] * eta, from = s->x[q];
                double v = kicked(s, a, s->p[q] / s->masses[a], s->f[q], noise[q], eta);
                const double way = s->dt * v;
                const double to = from + way;
                s->x[q] = to + shift;
                v = (s->x[q] - from - shift) / s->dt;
                s->p[q] = v; /* a velocity until finish() */
            } else {
                const double kick = half * s->f[q];
                s->p[q] = s->p[q] + kick;
                const double way = s->dt * s->p[q];
                const double shift = way / s->masses[a];
                s->x[q] = s->x[q] + shift;
            }
            const double d = s->x[q] - s->listed[q];
            moved += d * d;
        }
        covered &= moved < s->skin;
    }
    return covered;
}

/* The second half; returns the kinetic energy */
static double finish(verlet_run *s, const double *noise)
{
    const integer n = 3 * s->atoms;
    const double half = 0.5 * s->dt;
    double kinetic = 0;
    for (integer a = 0; a < s->atoms; a++)
        for (integer q = 3 * a; q < 3 * a + 3; q++) {
            if (s->c3) {
                const double v = kicked(s, a, s->p[q], s->f[q], noise[q], noise[n + q]);
                s->p[q] = v * s->masses[a];
            } else {
                const double kick = half * s->f[q];
                s->p[q] = s->p[q] + kick;
            }
            kinetic += s->p[q] * (s->p[q] / s->masses[a]);
        }
    return 0.5 * kinetic;
}

/* Whether a bond is longer than it may be, or its length is not a number */
static int broken(const verlet_run *s)
{
    for (integer b = 0; b < s->bonds; b++) {
        const double *i = s->x + 3 * s->bond[b], *j = s->x + 3 * s->bond[s->bonds + b];
        double square = 0;
        for (int c = 0; c < 3; c++) {
            const double d = j[c] - i[c] + s->shift[3 * b + c];
            square += d * d;
        }
        if (!(sqrt(square) - s->lengths[b] <= s->stretch))
            return 1;
    }
    return 0;
}

/* The potential at x, forces to f; whether all is finite, every atom has a neighbour, and none is
 * too close for the compiled form */
static int look_up(verlet_run *s, double *potential)
{
    const double started = seconds();
    s->evaluate(s->potential);
    s->seconds += seconds() - started;
    int fine = *s->closest >= s->nearest;
    double sum = 0;
    for (integer a = 0; a < s->atoms; a++) {
        sum += s->energies[a];
        fine &= s->lonely || s->atoms == 1 || s->neighbours[a] > 0;
    }
    for (integer q = 0; q < 3 * s->atoms; q++)
        s->f[q] = s->forces[q] * s->scale;
    *potential = s->scale * sum + s->offset;
    return fine && isfinite(*potential);
}

static void keep(const verlet_run *s, double *to)
{
    const size_t n = 3 * (size_t)s->atoms;
    memcpy(to, s->x, n * sizeof(double));
    memcpy(to + n, s->p, n * sizeof(double));
    memcpy(to + 2 * n, s->f, n * sizeof(double));
}

static void put_back(verlet_run *s, const double *from)
{
    const size_t n = 3 * (size_t)s->atoms;
    memcpy(s->x, from, n * sizeof(double));
    memcpy(s->p, from + n, n * sizeof(double));
    memcpy(s->f, from + 2 * n, n * sizeof(double));
}

/* Steps done, at most `steps`; *why says what is the matter with the next one.
 *
 * x, p and f then hold the state after the last step done. For NEW_PAIRS, `next` is where that step
 * would go. noise: standard normal numbers, [steps, 2, atoms, 3], of Langevin dynamics. rows:
 * potential and kinetic energy in eV, [steps, 2]; xs and ps: [steps, atoms, 3]; before: room for a
 * state, [3, atoms, 3]; next: [atoms, 3].
 */
integer verlet(verlet_run *s, integer steps, const double *noise, double *rows, double *xs,
               double *ps, double *before, double *next, int *why)
{
    const integer n = 3 * s->atoms;
    *why = DONE;
    for (integer k = 0; k < steps; k++) {
        const double *now = s->c3 ? noise + 2 * n * k : NULL;
        keep(s, before);
        if (!move(s, now)) {
            memcpy(next, s->x, (size_t)n * sizeof(double));
            put_back(s, before);
            *why = NEW_PAIRS;
            return k;
        }
        const int fine = look_up(s, rows + 2 * k);
        const double kinetic = finish(s, now);
        if (!(fine && kinetic <= s->heat) || (s->stretch >= 0 && broken(s))) {
            put_back(s, before);
            *why = UNPHYSICAL;
            return k;
        }
        rows[2 * k + 1] = kinetic;
        memcpy(xs + k * n, s->x, (size_t)n * sizeof(double));
        memcpy(ps + k * n, s->p, (size_t)n * sizeof(double));
    }
    return steps;
}

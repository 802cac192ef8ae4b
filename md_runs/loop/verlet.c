/* Velocity Verlet or Langevin dynamics, many steps a call, with forces from compiled potentials: one,
 * or the mean of several.
 *
 * The operations are those of ase.md.verlet.VelocityVerlet and ase.md.langevin.Langevin in their
 * order, each rounded by itself (see build.py: neither reordered nor fused), so that positions and
 * momenta are the same to the last bit. With noise a = c3 xi - c4 eta and b = c5 eta:
 *
 *     Verlet    p += (dt/2) f;  x += (dt p) / m;  f = F(x);  p += (dt/2) f
 *     Langevin  v += (c1 f) / m - c2 v + a;  x += dt v + b;  v = (change of x - b) / dt;
 *               f = F(x);  v += (c1 f) / m - c2 v + a
 *
 * A step that needs a new list of neighbours, that has left physics, or of which the potentials
 * disagree, is not done: the caller has the state before it, and ways to find out more.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef int64_t integer;

enum { DONE, NEW_PAIRS, LOOK };

/* A potential, E = scale (sum of the network's energies) + offset; the same fields as in
 * compiled_blocks.py. */
typedef struct {
    double scale, offset; /* eV */
    double nearest;       /* A: closer pairs are not for the compiled form */
    double *x;            /* A, [atoms, 3], where it is evaluated */
    const double *energies, *forces; /* of the network: [atoms], [atoms, 3] */
    const integer *neighbours;       /* [atoms] */
    const double *closest;           /* shortest distance of a pair, A */
    void (*evaluate)(const void *);
    const void *argument;
} member;

/* The same fields as in compiled_blocks.py. */
typedef struct {
    integer atoms, bonds, members;
    double dt;             /* ASE's unit of time */
    double skin;           /* (skin/2)^2, A^2: how far atoms may be from where pairs were listed */
    double stretch;        /* longest stretch of a bond, A; negative: not looked at */
    double heat;           /* highest kinetic energy, eV */
    double spread;         /* largest uncertainty of a step, eV/A; infinite: any */
    integer lonely;        /* whether atoms without neighbours are allowed */
    const double *masses;  /* amu, [atoms] */
    const double *listed;  /* A, [atoms, 3]: where the pairs were listed */
    const integer *bond;   /* [2, bonds] */
    const double *shift;   /* A, [bonds, 3], between the cells of the bonded atoms */
    const double *lengths; /* A, [bonds], at the start */
    double c1, c2;         /* Langevin's constants; */
    const double *c3, *c4, *c5; /* [atoms], c3 NULL for Verlet */
    double *x, *p, *f;     /* the state: A, amu A / time, eV/A, [atoms, 3]; x is the first member's */
    const member *member;  /* [members] */
    double seconds;        /* spent in the potentials, added to */
} verlet_run;

integer size_of_run(void) { return (integer)sizeof(verlet_run); }
integer size_of_member(void) { return (integer)sizeof(member); }

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

/* Mean energy and forces of the potentials at x, forces to f; whether the energy is finite, every atom
 * has a neighbour, and none is too close for a compiled form. Sums are those of NumPy's mean(). */
static int look_up(verlet_run *s, double *potential)
{
    const integer n = 3 * s->atoms;
    const double count = (double)s->members, started = seconds();
    for (const member *m = s->member; m < s->member + s->members; m++) {
        if (m->x != s->x)
            memcpy(m->x, s->x, (size_t)n * sizeof(double));
        m->evaluate(m->argument);
    }
    s->seconds += seconds() - started;
    int fine = 1;
    double energy = 0;
    for (const member *m = s->member; m < s->member + s->members; m++) {
        fine &= *m->closest >= m->nearest;
        double sum = 0;
        for (integer a = 0; a < s->atoms; a++) {
            sum += m->energies[a];
            fine &= s->lonely || s->atoms == 1 || m->neighbours[a] > 0;
        }
        energy += m->scale * sum + m->offset;
        for (integer q = 0; q < n; q++) {
            const double f = m->forces[q] * m->scale;
            s->f[q] = m == s->member ? f : s->f[q] + f;
        }
    }
    for (integer q = 0; q < n; q++)
        s->f[q] /= count;
    *potential = energy / count;
    return fine && isfinite(*potential);
}

/* The largest length of an atom's standard deviation of the forces over the members, eV/A; 0 of one.
 * Sums are those of NumPy's std(). */
static double uncertainty(const verlet_run *s)
{
    double largest = 0;
    for (integer a = 0; s->members > 1 && a < s->atoms; a++) {
        double square = 0;
        for (integer q = 3 * a; q < 3 * a + 3; q++) {
            double sum = 0;
            for (integer m = 0; m < s->members; m++) {
                const double f = s->member[m].forces[q] * s->member[m].scale, d = f - s->f[q];
                sum += d * d;
            }
            const double std = sqrt(sum / (double)(s->members - 1));
            square += std * std;
        }
        if (square > largest || isnan(square)) /* which stays */
            largest = square;
    }
    return sqrt(largest);
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
 * potential and kinetic energy in eV, and the uncertainty of the forces in eV/A, [steps, 3]; xs and
 * ps: [steps, atoms, 3]; before: room for a state, [3, atoms, 3]; next: [atoms, 3].
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
        double *row = rows + 3 * k;
        const int fine = look_up(s, row);
        const double kinetic = finish(s, now), spread = uncertainty(s);
        if (!(fine && kinetic <= s->heat && spread <= s->spread) ||
            (s->stretch >= 0 && broken(s))) {
            put_back(s, before);
            *why = LOOK;
            return k;
        }
        row[1] = kinetic;
        row[2] = spread;
        memcpy(xs + k * n, s->x, (size_t)n * sizeof(double));
        memcpy(ps + k * n, s->p, (size_t)n * sizeof(double));
    }
    return steps;
}

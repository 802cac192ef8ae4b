/* Velocity Verlet, many steps a call, with forces from a compiled potential.
 *
 * The operations are those of ase.md.verlet.VelocityVerlet in their order, each rounded by itself
 * (see build.py: neither reordered nor fused), so that positions and momenta are the same to the
 * last bit:  p += (dt/2) f;  x += (dt p) / m;  f = F(x);  p += (dt/2) f
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

/* The same fields as in blocks.py. */
typedef struct {
    integer atoms, bonds;
    double dt;             /* ASE's unit of time */
    double scale, offset;  /* eV: E = scale (sum of the network's energies) + offset */
    double skin;           /* (skin/2)^2, A^2: how far atoms may be from where pairs were listed */
    double stretch;        /* longest stretch of a bond, A; negative: not looked at */
    double heat;           /* highest kinetic energy, eV */
    integer lonely;        /* whether atoms without neighbours are allowed */
    const double *masses;  /* amu, [atoms] */
    const double *listed;  /* A, [atoms, 3]: where the pairs were listed */
    const integer *bond;   /* [2, bonds] */
    const double *shift;   /* A, [bonds, 3], between the cells of the bonded atoms */
    const double *lengths; /* A, [bonds], at the start */
    double *x, *p, *f;     /* the state: A, amu A / time, eV/A, [atoms, 3]; x is the potential's */
    const double *energies, *forces; /* of the network: [atoms], [atoms, 3] */
    const integer *neighbours;       /* [atoms] */
    void (*evaluate)(const void *);
    const void *potential;
    double seconds; /* spent in the potential, added to */
} verlet_run;

integer size_of_run(void) { return (integer)sizeof(verlet_run); }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
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

/* The potential at x, forces to f; whether all is finite and every atom has a neighbour */
static int look_up(verlet_run *s, double *potential)
{
    const double started = now();
    s->evaluate(s->potential);
    s->seconds += now() - started;
    int fine = 1;
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

/* Steps done, at most `steps`; *why says what is the matter with the next one.
 *
 * x, p and f hold the state after the last step done, but for NEW_PAIRS: there x is where that
 * step would go. rows: potential and kinetic energy in eV, [steps, 2]; xs and ps: [steps, atoms, 3].
 */
integer verlet(verlet_run *s, integer steps, double *rows, double *xs, double *ps, double *start,
               int *why)
{
    const integer n = 3 * s->atoms;
    const double half = 0.5 * s->dt;
    double *const before = start; /* [3, atoms, 3] */
    *why = DONE;
    for (integer k = 0; k < steps; k++) {
        memcpy(before, s->x, (size_t)n * sizeof(double));
        memcpy(before + n, s->p, (size_t)n * sizeof(double));
        memcpy(before + 2 * n, s->f, (size_t)n * sizeof(double));
        int covered = 1; /* no atom too far from where the pairs were listed */
        for (integer a = 0; a < s->atoms; a++) {
            double moved = 0;
            for (integer q = 3 * a; q < 3 * a + 3; q++) {
                const double kick = half * s->f[q];
                s->p[q] = s->p[q] + kick;
                const double way = s->dt * s->p[q];
                const double shift = way / s->masses[a];
                s->x[q] = s->x[q] + shift;
                const double d = s->x[q] - s->listed[q];
                moved += d * d;
            }
            covered &= moved < s->skin;
        }
        if (!covered) {
            memcpy(s->p, before + n, (size_t)n * sizeof(double));
            *why = NEW_PAIRS;
            return k;
        }
        double kinetic = 0;
        int fine = look_up(s, rows + 2 * k);
        for (integer a = 0; a < s->atoms; a++)
            for (integer q = 3 * a; q < 3 * a + 3; q++) {
                const double kick = half * s->f[q];
                s->p[q] = s->p[q] + kick;
                kinetic += s->p[q] * (s->p[q] / s->masses[a]);
            }
        kinetic *= 0.5;
        fine = fine && kinetic <= s->heat && !(s->stretch >= 0 && broken(s));
        if (!fine) {
            memcpy(s->x, before, (size_t)n * sizeof(double));
            memcpy(s->p, before + n, (size_t)n * sizeof(double));
            memcpy(s->f, before + 2 * n, (size_t)n * sizeof(double));
            *why = UNPHYSICAL;
            return k;
        }
        rows[2 * k + 1] = kinetic;
        memcpy(xs + k * n, s->x, (size_t)n * sizeof(double));
        memcpy(ps + k * n, s->p, (size_t)n * sizeof(double));
    }
    return steps;
}

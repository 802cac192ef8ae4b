/* Instructions of edge_network.c that depend on positions: functions of the distance from tables,
 * and spherical harmonics. */
#ifndef DCASE_EDGE_TABLES_H
#define DCASE_EDGE_TABLES_H

#include "edge_network.h"

/* m functions and their derivatives at a pair's distance, from the first of so many columns on */
static void tabulated(const edge_pair *p, const double *table, integer columns, integer first,
                      integer m, REAL *restrict value, REAL *restrict slope)
{
    const double *t = table + p->row * columns + first;
    for (integer q = 0; q < m; q++) {
        double v = 0, s = 0;
        for (int a = 0; a < 4; a++) {
            v += p->value[a] * t[a * columns + q];
            s += p->slope[a] * t[a * columns + q];
        }
        value[q] = (REAL)v;
        slope[q] = (REAL)s;
    }
}

/* dst[p] = functions of the distance, number[0] columns in the table */
static void radial(const evaluation *c, integer P, const step *s)
{
    for (integer p = 0; p < P; p++)
        tabulated(c->pairs + p, s->table, s->number[0], 0, s->m, SLOT(s->dst) + p * s->m,
                  SLOT(s->aux[0]) + p * s->m);
}

static void radial_back(const evaluation *c, integer P, const step *s)
{
    const REAL *g = SLOT(s->gdst), *slope = SLOT(s->aux[0]);
    for (integer p = 0; p < P; p++) {
        REAL sum = 0;
        for (integer q = p * s->m; q < (p + 1) * s->m; q++)
            sum += g[q] * slope[q];
        c->pairs[p].pull += (double)sum;
    }
}

/* ForceNet: dst[edge, (lm, q)] = Y_lm(u) R_q(d): number = degrees, columns, elements;
 *          R's columns in the table by element of the target, then of the source */

/* Y_lm and its derivatives by the components of u (potentials/networks/cartesian.py); norms
 * [l, m >= 0] */
static void harmonics(integer degrees, const double *norms, const double *u, double *Y,
                      double (*slope)[3])
{
    double a[degrees + 1], b[degrees + 1];
    a[0] = 1;
    b[0] = 0;
    for (integer m = 0; m < degrees; m++) {
        a[m + 1] = u[0] * a[m] - u[1] * b[m];
        b[m + 1] = u[0] * b[m] + u[1] * a[m];
    }
    double top = 1; /* (2m - 1)!! */
    for (integer m = 0; m < degrees; m++) {
        double before = 0, before_slope = 0, p = top, p_slope = 0;
        for (integer l = m; l < degrees; l++) {
            if (l > m) {
                const double rate = 1 / (double)(l - m), up = (double)(2 * l - 1),
                             down = (double)(l + m - 1);
                const double next = (up * u[2] * p - down * before) * rate;
                const double next_slope =
                    (up * (p + u[2] * p_slope) - down * before_slope) * rate;
                before = p;
                before_slope = p_slope;
                p = next;
                p_slope = next_slope;
            }
            const double norm = norms[l * degrees + m], n = (double)m;
            const double a1 = m ? n * a[m - 1] : 0, b1 = m ? n * b[m - 1] : 0;
            const integer plus = l * l + l + m, minus = l * l + l - m;
            Y[plus] = norm * p * a[m];
            slope[plus][0] = norm * p * a1;
            slope[plus][1] = -norm * p * b1;
            slope[plus][2] = norm * p_slope * a[m];
            if (m) {
                Y[minus] = norm * p * b[m];
                slope[minus][0] = norm * p * b1;
                slope[minus][1] = norm * p * a1;
                slope[minus][2] = norm * p_slope * b[m];
            }
        }
        top *= (double)(2 * m + 1);
    }
}

static void harmonic(const evaluation *c, integer P, const step *s, const REAL *g)
{
    const integer degrees = s->number[0], columns = s->number[1], elements = s->number[2];
    const integer size = degrees * degrees, all = columns * elements * elements;
    const double *norms = s->table + (c->intervals + 3) * all;
    double Y[size], slope[size][3];
    REAL value[columns], rate[columns];
    for (integer e = 0; e < 2 * P; e++) {
        edge_pair *p = c->pairs + PAIR(e);
        const double sign = e < P ? 1 : -1, u[3] = {sign * p->u[0], sign * p->u[1], sign * p->u[2]};
        harmonics(degrees, norms, u, Y, slope);
        const integer which = c->species[TARGET(e)] * elements + c->species[SOURCE(e)];
        tabulated(p, s->table, all, which * columns, columns, value, rate);
        if (!g) {
            REAL *restrict to = SLOT(s->dst) + e * size * columns;
            for (integer h = 0; h < size; h++)
                for (integer q = 0; q < columns; q++)
                    to[h * columns + q] = (REAL)Y[h] * value[q];
            continue;
        }
        const REAL *from = g + e * size * columns;
        for (integer h = 0; h < size; h++) {
            double by_direction = 0, by_distance = 0;
            for (integer q = 0; q < columns; q++) {
                by_direction += (double)(from[h * columns + q] * value[q]);
                by_distance += (double)(from[h * columns + q] * rate[q]);
            }
            p->pull += by_distance * Y[h];
            for (int x = 0; x < 3; x++)
                p->turn[x] += sign * by_direction * slope[h][x];
        }
    }
}

#endif

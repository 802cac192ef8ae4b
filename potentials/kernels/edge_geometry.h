/* Pairs, angles and forces of edge_network.c. */
#ifndef DCASE_EDGE_GEOMETRY_H
#define DCASE_EDGE_GEOMETRY_H

#include "edge_network.h"

/* Pairs within the cutoff and their geometry, the edges into each atom; returns their number. */
static integer find_pairs(const evaluation *c)
{
    const double limit = c->cutoff * c->cutoff;
    double closest = INFINITY;
    integer count = 0;
    memset(c->neighbours, 0, (size_t)c->atoms * sizeof(integer));
    for (integer q = 0; q < c->listed; q++) {
        edge_pair *p = c->pairs + count;
        p->i = c->list[q];
        p->j = c->list[c->listed + q];
        double square = 0;
        for (int x = 0; x < 3; x++) {
            p->r[x] = c->positions[3 * p->j + x] - c->positions[3 * p->i + x];
            if (c->offsets)
                p->r[x] += c->offsets[3 * q + x];
            square += p->r[x] * p->r[x];
        }
        if (!(square < limit))
            continue;
        p->d = sqrt(square);
        closest = p->d < closest ? p->d : closest;
        p->pull = 0;
        for (int x = 0; x < 3; x++) {
            p->u[x] = p->r[x] / p->d;
            p->turn[x] = 0;
        }
        p->row = spline_weights(p->d, c->intervals, c->spacing, p->value, p->slope);
        c->neighbours[p->i]++;
        c->neighbours[p->j]++;
        count++;
    }
    *c->closest = closest;
    /* edge e < count leads from j to i of pair e, edge count + e from i to j */
    c->first[0] = c->place[0] = 0;
    for (integer a = 0; a < c->atoms; a++) {
        const integer n = c->neighbours[a];
        c->first[a + 1] = c->first[a] + n;
        c->place[a + 1] = c->place[a] + n * c->orders * padded(n);
    }
    for (integer e = 0; e < 2 * count; e++) {
        const edge_pair *p = c->pairs + (e < count ? e : e - count);
        c->into[c->first[e < count ? p->i : p->j]++] = e;
    }
    for (integer a = c->atoms; a > 0; a--)
        c->first[a] = c->first[a - 1];
    c->first[0] = 0;
    return count;
}

/* P_l(x) and, unless it is NULL, P_l'(x) */
static void legendre(integer orders, double x, double *value, double *slope)
{
    for (integer l = 0; l < orders; l++) {
        const double n = (double)l;
        if (l < 2) {
            value[l] = l ? x : 1;
            if (slope)
                slope[l] = n;
            continue;
        }
        value[l] = ((2 * n - 1) * x * value[l - 1] - (n - 1) * value[l - 2]) / n;
        if (slope)
            slope[l] = slope[l - 2] + (2 * n - 1) * value[l - 1];
    }
}

/* The cosine between the s-th and the t-th edge into an atom, sign: of the product of both */
static double cosine(const evaluation *c, integer count, integer e, integer f, double *sign)
{
    const double *u = c->pairs[e < count ? e : e - count].u,
                 *v = c->pairs[f < count ? f : f - count].u;
    *sign = (e < count) == (f < count) ? 1 : -1;
    return *sign * (u[0] * v[0] + u[1] * v[1] + u[2] * v[2]);
}

/* norm_l P_l(cos angle) between the edges into atom a: from place[a] on [(s, l), padded t], 0 for
 * s = t */
static void angles(const evaluation *c, integer count)
{
    const integer L = c->orders;
    double P[L > 0 ? L : 1], sign;
    if (!L)
        return;
    memset(c->angular, 0, (size_t)c->place[c->atoms] * sizeof(REAL));
    memset(c->angular_gradient, 0, (size_t)c->place[c->atoms] * sizeof(REAL));
    for (integer a = 0; a < c->atoms; a++) {
        const integer n = c->neighbours[a], wide = padded(n), *e = c->into + c->first[a];
        REAL *Y = c->angular + c->place[a];
        for (integer s = 0; s < n; s++)
            for (integer t = 0; t < s; t++) {
                legendre(L, cosine(c, count, e[s], e[t], &sign), P, NULL);
                for (integer l = 0; l < L; l++)
                    Y[(s * L + l) * wide + t] = Y[(t * L + l) * wide + s] =
                        (REAL)(P[l] * c->norms[l]);
            }
    }
}

/* turn += the gradient through the angles */
static void turn_back(const evaluation *c, integer count)
{
    const integer L = c->orders;
    double P[L > 0 ? L : 1], slope[L > 0 ? L : 1], sign;
    for (integer a = 0; L && a < c->atoms; a++) {
        const integer n = c->neighbours[a], wide = padded(n), *e = c->into + c->first[a];
        const REAL *G = c->angular_gradient + c->place[a];
        for (integer s = 0; s < n; s++)
            for (integer t = 0; t < s; t++) {
                legendre(L, cosine(c, count, e[s], e[t], &sign), P, slope);
                double sum = 0;
                for (integer l = 0; l < L; l++)
                    sum += slope[l] * c->norms[l] *
                           (double)(G[(s * L + l) * wide + t] + G[(t * L + l) * wide + s]);
                edge_pair *p = c->pairs + (e[s] < count ? e[s] : e[s] - count),
                          *q = c->pairs + (e[t] < count ? e[t] : e[t] - count);
                for (int x = 0; x < 3; x++) {
                    const double ux = p->u[x], vx = q->u[x];
                    p->turn[x] += sum * sign * vx;
                    q->turn[x] += sum * sign * ux;
                }
            }
    }
}

/* Forces and virial from dE/dd and dE/du. */
static void gather_forces(const evaluation *c, integer count)
{
    memset(c->force, 0, (size_t)(3 * c->atoms) * sizeof(double));
    memset(c->virial, 0, 9 * sizeof(double));
    for (integer q = 0; q < count; q++) {
        const edge_pair *p = c->pairs + q;
        const double along =
            p->turn[0] * p->u[0] + p->turn[1] * p->u[1] + p->turn[2] * p->u[2];
        for (int x = 0; x < 3; x++) {
            const double g = p->pull * p->u[x] + (p->turn[x] - along * p->u[x]) / p->d;
            c->force[3 * p->i + x] += g;
            c->force[3 * p->j + x] -= g;
            for (int y = 0; y < 3; y++) { /* by a symmetric strain */
                c->virial[3 * x + y] += 0.5 * g * p->r[y];
                c->virial[3 * y + x] += 0.5 * g * p->r[y];
            }
        }
    }
}

#endif

"""Small problems with closed solutions."""

from __future__ import annotations

import numpy as np

from dcase.pinn.sample import Sample


def wave(x: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * x) + 0.5 * np.cos(6 * np.pi * x)


def advection_sample(nx: int = 128, nt: int = 41, beta: float = 0.1) -> Sample:
    """A smooth wave that is carried along."""
    x, t = (np.arange(nx) + 0.5) / nx, np.linspace(0.0, 2.0, nt)
    u = wave(x[:, None] - beta * t)
    axes = {"x": x, "t": t}
    domain = {"x": (0.0, 1.0), "t": (0.0, 2.0)}
    return Sample("advection", axes, {"u": u}, domain, {"beta": beta}, ("x",), "closed form")


def flow_sample(nx: int = 64, nt: int = 21) -> Sample:
    """Density carried by a uniform flow at constant pressure: an exact solution."""
    x, t = -1.0 + 2.0 * (np.arange(nx) + 0.5) / nx, np.linspace(0.0, 1.0, nt)
    speed = 0.7
    rho = 5.0 + np.sin(np.pi * (x[:, None] - speed * t))
    fields = {"rho": rho, "v": np.full_like(rho, speed), "p": np.full_like(rho, 50.0)}
    domain = {"x": (-1.0, 1.0), "t": (0.0, 1.0)}
    parameters = {"eta": 1e-8, "zeta": 1e-8, "gamma": 5.0 / 3.0}
    return Sample("cfd", {"x": x, "t": t}, fields, domain, parameters, ("x",), "closed form")


def reaction_sample(n: int = 16, nt: int = 21) -> Sample:
    """Not a solution: smooth fields that satisfy the walls, for tests of everything around."""
    x = -1.0 + 2.0 * (np.arange(n) + 0.5) / n
    t = np.linspace(0.0, 5.0, nt)
    u = np.cos(np.pi * x)[:, None, None] * np.cos(np.pi * x)[:, None] * np.exp(-t)
    axes = {"x": x, "y": x.copy(), "t": t}
    domain = {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "t": (0.0, 5.0)}
    parameters = {"Du": 1e-3, "Dv": 5e-3, "k": 5e-3}
    fields = {"u": u, "v": 0.5 * u}
    return Sample("diffusion-reaction", axes, fields, domain, parameters, (), "made up")

r"""A network of modes: sines or cosines in space whose coefficients are a network of time.

On a window of time :math:`t = t_0 + T\tau`, field f and spatial mode m:

.. math:: c_{fm}(t) = e^{-\lambda_{fm} T \tau}\, c_{fm}(t_0)
          + T \tau \sum_j h_j(\tau)\, C_{fmj}, \qquad
          h(\tau) = A^\top [\sigma(w \tau + b), 1]

==============  ====================================================================================
symbol          what it is
==============  ====================================================================================
lambda          decay of the mode in the linear part of the equation (diffusion), 0 if not known
h               a hidden layer of time; w and b are drawn, A takes their principal combinations,
                and all stay as they are (a random-feature network) unless ``train_hidden``
C               the weights, one set for each field and mode; stored as B with C = P B, where P
                makes the linear part of the equation well conditioned mode by mode
==============  ====================================================================================

The start of the window is exact, and so are periodicity (sines and cosines) or no-flux walls
(cosines). All derivatives are exact in closed form. The loss is the equation's residual at times
within the window on a grid in space, projected on the modes (a Galerkin or variational loss,
1907.09556): what the modes cannot represent anyway, such as the foot of a shock, then does not
outweigh what they can.

Such a network on short windows stands between a PINN and an implicit spectral method: it is trained
by gradient descent on the residual alone, but its inductive bias is that of the modes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.activations.jets import activation_jet
from dcase.errors import OptionError
from dcase.pinn.derivatives.names import Named, Wanted
from dcase.pinn.domains import Domain
from dcase.pinn.equations import ModeHints


class Modes:
    """Orthonormal modes of one coordinate: mean of the product of two is 1 or 0.

    Args:
        low: Lower end.
        length: Extent; the period of ``"fourier"``.
        kind: ``"fourier"`` (a constant, then ``count`` cosines, then ``count`` sines) or
            ``"cosine"`` (``count`` cosines, the constant among them).
        count: Modes.
    """

    def __init__(self, low: float, length: float, kind: str, count: int):
        self.low, self.length, self.kind, self.count = low, length, kind, count
        number = torch.arange(1, count + 1, dtype=torch.float64)
        if kind == "fourier":
            wave = 2.0 * math.pi / length * number
            self.wave_numbers = torch.cat([torch.zeros(1, dtype=torch.float64), wave, wave])
        elif kind == "cosine":
            self.wave_numbers = math.pi / length * (number - 1.0)
        else:
            raise OptionError(f"modes are fourier or cosine, not {kind!r}")

    def __len__(self) -> int:
        return len(self.wave_numbers)

    def at(self, x: Tensor, order: int = 0) -> Tensor:
        """Values (or derivatives) [n, modes] at x [n], float64."""
        k = self.wave_numbers
        phase = (x.double()[:, None] - self.low) * k
        # The n-th derivative turns the phase by n quarters.
        cosines = torch.cos(phase + 0.5 * math.pi * order)
        values = math.sqrt(2.0) * k**order * cosines
        if self.kind == "fourier":
            sines = math.sqrt(2.0) * k**order * torch.sin(phase + 0.5 * math.pi * order)
            values = torch.cat([values[:, : self.count + 1], sines[:, self.count + 1 :]], 1)
        values[:, 0] = 1.0 if order == 0 else 0.0
        return values

    def grid(self, points: int) -> Tensor:
        """Cell centres [points]."""
        step = self.length / points
        return self.low + step * (torch.arange(points, dtype=torch.float64) + 0.5)

    def smallest_grid(self) -> int:
        """Cells that determine all modes."""
        return len(self)


class SpectralNetwork(nn.Module):
    """See the module's text.

    Args:
        domain: The window.
        fields: Names of the fields.
        kinds: ``"fourier"`` or ``"cosine"``, for each spatial coordinate.
        start: Coefficients at the start, [fields, modes of x, (modes of y)].
        grid: Collocation cells an axis.
        times: Collocation times.
        hidden: Number of functions h.
        width: Of the hidden layer.
        activation: Of the hidden layer.
        hints: See :class:`ModeHints`.
        train_hidden: Also train w, b and A.
        generator: Source of the hidden layer.
        dtype: Of everything.

    Raises:
        OptionError: If there are fewer cells than modes, or more than two spatial coordinates.
    """

    def __init__(
        self,
        domain: Domain,
        fields: Sequence[str],
        kinds: Sequence[str],
        start: Tensor,
        *,
        grid: int,
        times: int = 8,
        hidden: int = 6,
        width: int = 16,
        activation: str | nn.Module = "tanh",
        hints: ModeHints | None = None,
        train_hidden: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        self.tau: Tensor
        self.start: Tensor
        self.decay: Tensor
        self.conditioner: Tensor
        self.scale: Tensor
        self.mix: Tensor
        self.base: Tensor
        self.base_rate: Tensor
        self.wave_squared: Tensor
        if len(domain.space) not in (1, 2):
            raise OptionError("a network of modes has one or two spatial coordinates")
        self.domain, self.fields = domain, tuple(fields)
        self.t0, self.T = domain.low("t"), domain.length("t")
        self.modes = [
            modes_of(domain, name, kind, count)
            for name, kind, count in zip(domain.space, kinds, start.shape[1:], strict=True)
        ]
        if times < hidden:
            raise OptionError(f"{times} collocation times do not determine {hidden} functions")
        if any(grid < m.smallest_grid() for m in self.modes):
            raise OptionError(f"{grid} cells do not determine {max(map(len, self.modes))} modes")
        self.activation, self.hidden = get_activation(activation), hidden
        hints = hints or ModeHints()
        generator = generator or torch.Generator().manual_seed(0)
        draw = torch.rand(3, width, dtype=torch.float64, generator=generator)
        w = 1.5 * (2.0 * draw[0] - 1.0)  # smooth enough for few functions to do
        tau = 0.5 * (1.0 - torch.cos(math.pi * (torch.arange(times) + 0.5) / times)).double()
        self.register_buffer("tau", tau.to(dtype), persistent=False)
        self.w, self.b = nn.Parameter(w), nn.Parameter(-w * draw[1])
        self.out = nn.Parameter(torch.eye(width + 1, dtype=torch.float64))
        conditioner, scale, mix = self._conditioner(start, hints)
        for name, value in {
            "start": start,
            "decay": self._per_mode(hints.decay, start),
            "conditioner": conditioner,
            "scale": scale,
            "mix": mix,
        }.items():
            self.register_buffer(name, value.to(dtype))
        self.B = nn.Parameter(torch.zeros(*start.shape, hidden, dtype=dtype))
        for parameter in (self.w, self.b, self.out):
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(train_hidden)
        cells = [m.grid(grid) for m in self.modes]
        self.cells = [c.to(dtype) for c in cells]
        for k, (m, c) in enumerate(zip(self.modes, cells, strict=True)):
            for order in (0, 1, 2):
                self.register_buffer(f"basis{k}{order}", m.at(c, order).to(dtype), persistent=False)
        for name, derivative in (("base", False), ("base_rate", True)):
            value = self._base(self.tau, derivative)
            self.register_buffer(name, value, persistent=False)
        squares = [m.wave_numbers**2 for m in self.modes]
        total = squares[0] if len(squares) == 1 else squares[0][:, None] + squares[1]
        self.register_buffer("wave_squared", total.to(dtype), persistent=False)

    # ------------------------------------------------------------------ conditioning

    def _per_mode(self, values: Mapping[str, Tensor], start: Tensor) -> Tensor:
        zero = torch.zeros(start.shape[1:], dtype=torch.float64)
        rows = [values.get(name, zero).double().reshape(start.shape[1:]) for name in self.fields]
        return torch.stack(rows)

    @torch.no_grad()
    def _conditioner(self, start: Tensor, hints: ModeHints) -> tuple[Tensor, Tensor, Tensor]:
        """P [fields, modes, hidden, hidden], scale [fields], and the sharing of changes.

        P whitens ``d/dt + decay + i frequency`` acting on a mode's functions of time: with
        ``G = A^T A`` of that operator on the collocation times, ``P^T G P = 1``.
        """
        tau = self.tau.double()
        h, slope = self._hidden(tau)
        # Of the hidden units and a constant, the combinations that make the most of the derivative,
        # orthonormal there: smooth functions of time, much like the first polynomials.
        _, sizes, right = torch.linalg.svd(h + tau[:, None] * slope, full_matrices=False)
        sizes = sizes[: self.hidden].clamp(min=1e-12 * float(sizes[0]))
        self.out = nn.Parameter(right[: self.hidden].T / sizes * math.sqrt(len(tau)))
        h, slope = self._hidden(tau)
        value, derivative = tau[:, None] * h, h + tau[:, None] * slope
        decay = self._per_mode(hints.decay, start)[..., None, None] * self.T
        frequency = self._per_mode(hints.frequency, start)[..., None, None] * self.T
        damped = derivative + decay * value
        gram = damped.transpose(-1, -2) @ damped + frequency**2 * (value.T @ value)
        gram = gram / len(tau)
        ridge = 1e-10 * torch.diagonal(gram, dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(gram.shape[-1], dtype=torch.float64)
        root = torch.linalg.cholesky(gram + ridge * eye)
        upper = root.transpose(-1, -2)
        P = torch.linalg.solve_triangular(upper, eye.expand_as(root), upper=True)
        scales = [hints.scales.get(name, 1.0) * hints.rate for name in self.fields]
        mix = torch.eye(len(self.fields), dtype=torch.float64)
        for a, b in hints.shared:
            i, j = self.fields.index(a), self.fields.index(b)
            mix[i, j] = hints.scales.get(a, 1.0) / hints.scales.get(b, 1.0)
        return P.contiguous(), torch.tensor(scales, dtype=torch.float64), mix

    def _hidden(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """The functions of time [n, hidden], and their derivatives by tau."""
        z = tau[:, None] * self.w + self.b
        s, slope = activation_jet(self.activation, z, 1)
        units, constant = self.out.split([self.w.numel(), 1])
        return s @ units + constant, (slope * self.w) @ units

    # ------------------------------------------------------------------ fields

    def coefficients(self, tau: Tensor, derivative: bool = False) -> Tensor:
        """Coefficients, or their derivative by time, [n, fields, modes] at scaled times tau [n]."""
        return self._base(tau, derivative) + self._change(tau, self._weights(), derivative)

    def _base(self, tau: Tensor, derivative: bool) -> Tensor:
        """What the linear decay makes of the start."""
        by_time = tau.reshape(-1, 1, *(1,) * len(self.modes))
        base = torch.exp(-self.decay * self.T * by_time) * self.start
        return -self.decay * base if derivative else base

    def _weights(self) -> Tensor:
        """C from B, [fields, modes, hidden]."""
        C = (self.conditioner @ self.B[..., None])[..., 0]
        C = C * self.scale.reshape(-1, *(1,) * (C.ndim - 1))
        return torch.einsum("fg,g...->f...", self.mix, C)

    def _change(self, tau: Tensor, C: Tensor, derivative: bool) -> Tensor:
        h, slope = self._hidden(tau)
        factor = h + tau[:, None] * slope if derivative else self.T * tau[:, None] * h
        return torch.einsum("tj,f...j->tf...", factor, C)

    def _on_grid(self, c: Tensor, orders: Sequence[int]) -> Tensor:
        """Coefficients [..., modes] -> values [..., cells]."""
        last = len(self.modes) - 1
        out = c @ getattr(self, f"basis{last}{orders[last]}").T
        if last:
            out = getattr(self, f"basis0{orders[0]}") @ out
        return out

    def grid_derivatives(self, wanted: Wanted) -> Named:
        """Fields, derivatives and coordinates on collocation times x cells, each flattened.

        Raises:
            OptionError: For a second derivative that involves time.
        """
        space = len(self.modes)
        kept: dict[tuple, Tensor] = {}
        C = self._weights()
        now = self.base + self._change(self.tau, C, False)
        rate = self.base_rate + self._change(self.tau, C, True)

        def values(key: tuple) -> Tensor:
            """[times, fields, cells]."""
            if key not in kept:
                orders, c = key[1:], rate if key[0] else now
                if orders == ("laplacian",):
                    kept[key] = self._on_grid(-self.wave_squared * c, (0,) * space)
                else:
                    kept[key] = self._on_grid(c, orders)
            return kept[key]

        found = {}
        for r in wanted.requests:
            if r.kind == "coordinate":
                found[r.name] = self._coordinate(r.indices[0])
                continue
            times = sum(i == space for i in r.indices)
            orders = tuple(sum(i == k for i in r.indices) for k in range(space))
            if times and r.kind == "second":
                raise OptionError(f"a network of modes has no second derivative {r.name}")
            key = (False, "laplacian") if r.kind == "laplacian" else (bool(times), *orders)
            found[r.name] = values(key)[:, r.field].flatten()
        return Named(found)

    def _coordinate(self, index: int) -> Tensor:
        axes = [self.t0 + self.T * self.tau, *(c.to(self.tau) for c in self.cells)]
        grids = torch.meshgrid(*axes, indexing="ij")
        return grids[0 if index == len(self.modes) else index + 1].flatten()

    def project(self, residual: Tensor) -> Tensor:
        """A residual [times * cells] on the modes, scaled so that mean squares compare."""
        sizes = [len(c) for c in self.cells]
        r = residual.reshape(-1, *sizes)
        r = r @ self.get_buffer(f"basis{len(sizes) - 1}0") / sizes[-1]
        if len(sizes) == 2:
            r = self.get_buffer("basis00").T @ r / sizes[0]
        return r.flatten() * math.sqrt(math.prod(len(m) for m in self.modes))

    def end(self) -> Tensor:
        """Coefficients at the end of the window, [fields, modes]."""
        with torch.no_grad():
            return self.coefficients(torch.ones_like(self.tau[:1]))[0]

    def essentials(self) -> dict[str, Tensor]:
        """What cannot be worked out anew: the start of the window, and the trained weights."""
        state = self.state_dict()
        return {name: state[name].cpu() for name in ("start", "B", "w", "b", "out")}

    def forward(self, points: Tensor) -> Tensor:
        """Fields [N, F] at points [N, d] of few different times; for evaluation.

        Raises:
            OptionError: If the points require gradients, which would be those by space alone.
        """
        if points.requires_grad:
            raise OptionError("a network of modes is differentiated by grid_derivatives")
        tau = (points[:, -1] - self.t0) / self.T
        times, which = torch.unique(tau, return_inverse=True)
        out = points.new_empty(len(points), len(self.fields))
        for number, c in enumerate(self.coefficients(times)):
            here = torch.nonzero(which == number).squeeze(1)
            values = [m.at(points[here, k]).to(c) for k, m in enumerate(self.modes)]
            if len(values) == 1:
                out[here] = values[0] @ c.T
            else:
                out[here] = torch.einsum("nx,fxy,ny->nf", values[0], c, values[1])
        return out


def modes_of(domain: Domain, name: str, kind: str, size: int) -> Modes:
    """The modes of a coordinate from the number of coefficients."""
    count = (size - 1) // 2 if kind == "fourier" else size
    return Modes(domain.low(name), domain.length(name), kind, count)


def at_cells(c: Tensor, modes: Sequence[Modes]) -> Tensor:
    """Fields [fields, cells] on the smallest grid of coefficients [fields, modes]."""
    c = c.double()
    for axis, m in enumerate(modes, 1):
        basis = m.at(m.grid(len(m)))
        c = torch.movedim(torch.movedim(c, axis, -1) @ basis.T, -1, axis)
    return c


def fit_modes(values: Tensor, modes: Sequence[Modes]) -> Tensor:
    """Coefficients [fields, modes] of fields given at cell centres [fields, cells].

    Exact for what the modes can represent, where there are at least as many cells as modes.
    """
    c = values
    for axis, m in enumerate(modes, 1):
        cells = c.shape[axis]
        basis = m.at(m.grid(cells))
        c = torch.movedim(torch.movedim(c, axis, -1) @ basis / cells, -1, axis)
    return c

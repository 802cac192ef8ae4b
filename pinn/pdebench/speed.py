"""At which speed an advection sample really moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dcase.pinn.sample import Sample

TOLERANCE = 0.02
"""Relative difference between the stated and the measured speed that is put down to the scheme."""


def measured_speed(sample: Sample, guesses: tuple[float, ...] = ()) -> float | None:
    """Speed of a periodic profile ``u(x - beta t)``, from the phases of its Fourier modes.

    Each mode turns by ``2 pi m beta dt / L`` between stored times. The shift of one such
    interval is where the profile best overlaps with its shifted self; of several such shifts (a
    profile may repeat itself, and whole periods do not show) the one nearest to a guess is taken.
    The phases then refine it.

    Returns:
        The speed, or None if the profile is flat, or does not keep its shape.
    """
    x, t = sample.axes["x"], sample.axes["t"]
    u = sample.fields["u"]
    low, high = sample.domain["x"]
    length = high - low
    modes = np.arange(1, len(x) // 2)
    spectrum = np.fft.rfft(u, axis=0)[1 : len(x) // 2]
    energy = np.sum(np.abs(spectrum) ** 2)
    if energy <= 1e-12 * len(x) * np.sum(u**2):
        return None
    # Of all neighbouring times: sum of conj(u_m(t)) u_m(t + dt), which a shift turns back.
    cross = np.sum(np.conj(spectrum[:, :-1]) * spectrum[:, 1:], axis=1)
    interval = float(t[-1] - t[0]) / (len(t) - 1)
    fine = 8 * len(x)
    shifts = np.arange(fine) / fine
    padded = np.zeros(fine // 2 + 1, dtype=complex)
    padded[modes] = cross
    overlap = np.fft.irfft(padded, fine)
    if overlap.max() * fine / 2 < 0.5 * np.abs(cross).sum():
        return None  # nothing moves here without changing its shape
    good = shifts[overlap >= overlap.max() * (1 - 1e-3)]
    wanted = [guess * interval / length for guess in guesses] or [0.0]
    whole = [(s + round(w - s), w) for s in good for w in wanted]
    speed = min(whole, key=lambda pair: abs(pair[0] - pair[1]))[0] * length / interval
    # What is left of the phases, weighted by energy, makes it exact.
    turn = 2 * np.pi * modes * interval / length
    rest = np.angle(cross * np.exp(1j * turn * speed))
    weight = np.abs(cross)
    near = weight > 1e-3 * weight.max()  # above the noise of float32
    return float(speed - np.sum((weight * turn * rest)[near]) / np.sum((weight * turn**2)[near]))


def check_speed(sample: Sample) -> Sample:
    """The sample with the speed it really has, and a warning if that is not the stated one."""
    stated = sample.parameters["beta"]
    speed = measured_speed(sample, (stated, 2 * stated))
    if speed is None or abs(speed - stated) <= TOLERANCE * max(abs(stated), 1e-12):
        return sample
    doubled = abs(speed - 2 * stated) <= TOLERANCE * abs(2 * stated)
    beta = 2 * stated if doubled else speed
    reason = "twice that: files published before August 2023 do (PDEBench issue 46)"
    warning = (
        f"the file states beta = {stated:g}, but the profile moves at {speed:.4g}"
        f"{', ' + reason if doubled else ''}; beta = {beta:.6g} is used"
    )
    return replace(
        sample,
        parameters={**sample.parameters, "beta": beta, "beta_attribute": stated},
        warnings=(*sample.warnings, warning),
    )

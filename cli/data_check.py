"""``dcase data check``: what a training should not be given, before it is."""

from __future__ import annotations

from typing import Any

import click
import numpy as np

from dcase.cli.notices import Notices
from dcase.cli.options import check_outputs, json_option, positive, reading_options
from dcase.cli.structures import load_frames
from dcase.data.frames import Reading
from dcase.errors import OptionError
from dcase.files import write_json

FOUND = 1
"""Exit code if something was found."""


@click.command()
@click.argument("file")
@reading_options
@click.option(
    "--index", default=":", show_default=True, help="Frames, in ASE's notation: 5, :100, ::10."
)
@positive("--max-force", help="Name frames with a larger force component, eV/A.")
@json_option()
@click.option(
    "--plot", type=click.Path(dir_okay=False), default=None, metavar="PNG",
    help="Draw energies and largest forces of all frames, outliers marked.",
)  # fmt: skip
def check(
    file: str,
    reading: Reading,
    index: str,
    max_force: float | None,
    json_file: str | None,
    plot: str | None,
) -> None:
    """Look at the frames and labels of FILE as every training does; exit code 1 if it finds any.

    \b
    energy      far from what the composition gives (robust z-score beyond 10)
    forces      far above those of the other frames
    overlap     atoms nearer than half the sum of their covalent radii
    net force   forces that do not add up to zero
    duplicates  frames that occur before
    units       bond lengths, stiffness of bonds, or energies against forces
                that speak for other units than those that are taken
    stress      that is zero, falls as the volume grows, or is beyond any solid's

    FILE is an .npz, an .lmdb of OC22 or OC20, extxyz, .traj or .db. Outliers are left out of a
    training with --drop-outliers.
    """
    from dcase.cli.show import results_console
    from dcase.data.label_check import check_labels

    check_outputs(json_file, plot, "the figure is a PNG")
    dataset = load_frames(file, reading, index=index, notify=Notices().note)
    found = check_labels(dataset, max_force=max_force)
    console = results_console()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    said = [
        name
        for name, label in (
            ("energies", dataset.energies), ("forces", dataset.forces), ("stress", dataset.stress),
        )
        if label is not None
    ]  # fmt: skip
    sizes = np.unique(dataset.n_atoms)
    atoms = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    say(
        f"{file}: {len(dataset)} frames of {atoms} atoms, {', '.join(said) or 'no labels'} "
        f"(read as {dataset.info.label_unit})"
    )
    for one in found.findings:
        say(f"{one.kind:<11} {one.text}")
    for what in found.skipped:
        say(f"not checked {what}")
    outliers = found.outliers()
    if not found.findings:
        say("nothing found")
    elif len(outliers):
        say(f"{len(outliers)} of {len(dataset)} frames are left out with --drop-outliers")
    if json_file:
        write_json(json_file, {"file": file, **found.to_dict()})
    if plot:
        _draw(found, plot)
        say(f"figure: {plot}")
    if found.findings:
        raise click.exceptions.Exit(FOUND)


def _draw(found: Any, path: str) -> None:
    """Energies and largest forces, frame by frame."""
    from dcase import plotting

    panels = [
        (values, label)
        for values, label in (
            (found.energy, "energy less the composition's (eV/atom)"),
            (found.force, "largest force (eV/Å)"),
        )
        if values is not None
    ]
    if not panels:
        raise OptionError("there is nothing to draw: neither energies nor forces can be compared")
    figure, axes = plotting.new_figure(1, len(panels), (4.6 * len(panels), 3.4))
    outliers = found.outliers()
    rest = np.setdiff1d(np.arange(found.frames), outliers)
    for ax, (values, label) in zip(axes, panels, strict=True):
        ax.plot(rest, values[rest], ".", color=plotting.BLUE, markersize=4)
        ax.plot(outliers, values[outliers], "D", color=plotting.RED, markersize=6, label="outliers")
        if values is found.force:
            plotting.log_scale(ax)
        elif len(outliers) and np.abs(values[outliers]).max() > 20 * np.abs(values[rest]).max():
            ax.set_yscale("symlog", linthresh=max(float(np.abs(values[rest]).max()), 1e-6))
        ax.set_xlabel("frame")
        ax.set_ylabel(label)
    if len(outliers):
        axes[-1].legend(frameon=False, fontsize=8)
    plotting.save(figure, path)

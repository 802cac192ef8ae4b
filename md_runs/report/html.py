"""One self-contained page: pictures inside, nothing fetched, prints on paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from dcase.md_runs.report.summary import ensemble_name, summary_rows
from dcase.plotting import DPI

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
p.verdict { font-size: 1.05rem; padding: .6rem .9rem; border-left: .35rem solid #0072B2;
            background: #f2f7fb; }
p.verdict.bad { border-color: #D55E00; background: #fdf3ec; }
p.warning { border-left: .35rem solid #E69F00; padding: .3rem .9rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0;
         border-bottom: 1px solid #e6e6e6; }
th { font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
footer { margin-top: 2rem; color: #555; font-size: .85rem; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; }
               img { max-height: 9.5cm; width: auto; }
               figure, table, p.verdict { break-inside: avoid; } h2 { break-after: avoid; } }
"""

CAPTIONS = {
    "energies": "Energies per atom, from the lowest potential energy met, and temperature.",
    "drift": "Deviation of the conserved energy from its start, the least-squares line, and two "
    "standard errors of its slope (autocorrelation included).",
    "uncertainty": "How far the members of the ensemble disagree: the largest standard deviation "
    "of the force on an atom. Where it is above the limit the potential is not to be trusted.",
    "dt_scan": "Fluctuation of the total energy over the same time from the same start. A smooth "
    "energy and its own gradient follow the dashed line.",
    "h_of_r": "Distribution of all interatomic distances, up to the first broken bond.",
}


def render(report: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        report: As in ``report.json``.
        images: PNG by name of the figure.
    """
    title = (
        f"{report['formula']}: {ensemble_name(report['ensemble'])} at {report['temperature_K']:g} K"
    )
    drift = report["energy_drift"]["verdict"]
    good = report["finished"] and drift.startswith(
        ("no significant", "significant but small", "not applicable", "too short")
    )
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict{"" if good else " bad"}">Run: {escape(str(report["status"]))}.<br>'
        f"Energy: {escape(drift)}.</p>",
    ]
    parts += [f'<p class="warning">{escape(text)}</p>' for text in report["warnings"]]
    parts.append("<h2>Summary</h2>")
    parts.append(_pairs(summary_rows(dict(report))))
    for name, image in images.items():
        data = base64.b64encode(image).decode("ascii")
        caption = CAPTIONS[name]
        parts.append(
            f'<figure><img width="{_width(image)}" src="data:image/png;base64,{data}" '
            f'alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
        if name == "dt_scan":
            parts.append(_scan(report))
    parts.append("<h2>Settings</h2>")
    parts.append(_pairs([(k, _plain(v)) for k, v in report["settings"].items()]))
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    parts.append(f"<footer>{escape(versions)}</footer></body></html>")
    return "\n".join(parts) + "\n"


def _width(image: bytes) -> int:
    """Width in CSS pixels (96 per inch) at which text in the picture has the size of the page's."""
    return round(int.from_bytes(image[16:20], "big") * 96 / DPI * 1.2)


def _pairs(rows: list[tuple[str, str]]) -> str:
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return "<table>" + "".join(cells) + "</table>"


def _scan(report: Mapping[str, Any]) -> str:
    head = (
        '<tr><th class="n">time step (fs)</th><th class="n">RMS (meV/atom)</th>'
        '<th class="n">ratio to next</th><th class="n">slope (meV/atom/ps)</th></tr>'
    )
    rows = [
        "<tr>"
        + "".join(
            f'<td class="n">{_plain(entry.get(key))}</td>'
            for key in (
                "timestep_fs",
                "rms_mev_per_atom",
                "ratio_to_next",
                "slope_mev_per_atom_ps",
            )
        )
        + "</tr>"
        for entry in report["dt_scan"]
    ]
    return f"<table>{head}{''.join(rows)}</table>"


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""The loop: train an ensemble, sample with it, choose, label, and train again.

Every stage of a round leaves one file that is written whole, and is skipped if its file is there:

    members/*.pt, ensemble.pt    trained (a member goes on from its saved state)
    sample/walker-00/ ...        a run of ``dcase md`` each (goes on from its checkpoint)
    chosen.extxyz                frames to label
    labels/000.json ...          one label each
    labelled.extxyz, round.json  the round is over

What a stage does depends on nothing but these files and the settings, random numbers included. So a
run that was killed anywhere and gone on with comes to what an undisturbed one would have. (Training
with a time limit depends on the clock, and does not repeat.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError, RunError
from dcase.files import write_json
from dcase.md_runs.active.curve import PANELS, curve_figure
from dcase.md_runs.active.folder import ActiveFolder, RoundFolder, read_json
from dcase.md_runs.active.frames import (
    fingerprints_of,
    info_of,
    joined,
    read_labelled,
    read_structures,
    write_frames,
)
from dcase.md_runs.active.labels import Labeller, label_frames
from dcase.md_runs.active.sampling import choose, choose_starts, sample
from dcase.md_runs.active.settings import ActiveSettings
from dcase.md_runs.active.start import Start, given_frames, made_frames
from dcase.md_runs.active.training import load_ensemble, train_ensemble
from dcase.plotting import save
from dcase.potentials.calculator import DCCalculator
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.recipe import Recipe
from dcase.runs import Identity, Run, claim, fingerprint

FINISHED = "finished"
TRUSTED = "finished: no walker was stopped by its uncertainty"

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class ActiveResult:
    """What came of a run.

    Attributes:
        ensemble: The last ensemble.
        folder: Everything else.
        status: ``"finished"``, or that with why it ended before the last round.
        curve: As in ``learning_curve.json``.
    """

    ensemble: Ensemble
    folder: ActiveFolder
    status: str
    curve: dict[str, Any]


class ActiveLearning:
    """An active learning run.

    Args:
        start: What to start from.
        labeller: What computes labels.
        recipe: Training of every member.
        settings: All else.
        out: Folder.
        test: Labelled frames on which errors are measured each round, or None.
        resume: Go on with the run in ``out``.
        overwrite: Replace it.
        jobs: Members trained at a time, in processes of one thread each.
        device: Where to train and to simulate.
        notify: Called with one line for every stage.
        bar: Given a title, a context in which a function is called with steps done and in all.

    Raises:
        DataError: If the test frames are not labelled.
    """

    def __init__(
        self,
        start: Start,
        labeller: Labeller,
        recipe: Recipe,
        settings: ActiveSettings,
        out: str | Path,
        *,
        test: AtomicDataset | None = None,
        resume: bool = False,
        overwrite: bool = False,
        jobs: int = 1,
        device: str = "cpu",
        notify: Callable[[str], None] | None = None,
        bar: Bar | None = None,
    ) -> None:
        if test is not None and test.forces is None:
            raise DataError("the test frames have no forces")
        self.start, self.labeller, self.recipe = start, labeller, recipe
        self.settings, self.test = settings, test
        self.jobs, self.device = jobs, device
        self.folder = ActiveFolder(Path(out))
        self.notify = notify or (lambda line: None)
        self.bar: Bar = bar or (lambda title: nullcontext(lambda done, total: None))
        self.info = info_of(labeller.theory, start.molecule)
        self.stage = "starting"
        self._told_form = False
        self.resume, self.overwrite = resume, overwrite
        self.claimed: Run | None = None
        self.identity = Identity(
            "active-learn",
            {**settings.to_dict(), "recipe": recipe.identity(), "labeller": labeller.name},
            free=("rounds",),
            data={
                "start": fingerprint(start.identity()),
                "test set": "none" if test is None else test.fingerprint(),
            },
        )

    def run(self) -> ActiveResult:
        """All rounds, or those that are left.

        Raises:
            RunError: If ``out`` holds a run (another run, or with more rounds done than are asked
                for, for ``resume``), or another process is at work in it.
            KeyboardInterrupt: On Ctrl-C; its message says how to go on.
            DcaseError: If a stage cannot be done; what was done before is kept.
        """
        options: dict[str, Any] = {"resume": self.resume, "overwrite": self.overwrite}
        try:
            with claim(self.folder.place, self.identity, **options, check=self._fits) as run:
                self.claimed = run
                result = self._rounds()
                run.finish(result.status)
            return result
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"stopped while {self.stage}; what there is is kept in {self.folder.root}, and "
                "the same command with --resume goes on"
            ) from stop

    def _fits(self, record: dict[str, Any]) -> None:
        """Refuse fewer rounds than there are."""
        rounds = self.folder.root.glob("round-*/round.json")
        done = max((int(path.parent.name[6:]) for path in rounds), default=0)
        if self.settings.rounds < done:
            raise RunError(
                f"the run already has {done} rounds and cannot be cut to {self.settings.rounds}"
            )

    @contextmanager
    def _shown(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar; with every step of it a look whether the folder is still there."""
        with self.bar(title) as progress:

            def step(done: int, total: int) -> None:
                assert self.claimed is not None
                self.claimed.check()
                progress(done, total)

            yield step

    def _rounds(self) -> ActiveResult:
        self._first_frames()
        status, rows = FINISHED, []
        for number in range(self.settings.rounds + 1):
            row = self._round(number)
            rows.append(row)
            self._publish(rows, "running")
            if self.settings.until_trusted and row.get("walkers_uncertain") == 0:
                status = TRUSTED
                rows.append(self._round(number + 1, last=True))
                break
        ensemble = load_ensemble(self.folder.round(int(rows[-1]["round"])), self.device)
        ensemble.save(self.folder.ensemble)
        curve = self._publish(rows, status)
        return ActiveResult(ensemble, self.folder, status, curve)

    # --- stages --------------------------------------------------------------------------------

    def _first_frames(self) -> None:
        """``first.extxyz``: given and checked, or made and labelled here."""
        if self.folder.first.exists():
            return
        self.stage = "labelling the first frames"
        if self.start.labelled is not None:
            frames = given_frames(self.start, self.labeller, self.settings, self.folder)
        else:
            self.notify(f"labelling {self.start.n_copies} first frames with {self.labeller.theory}")
            with self._shown("labels") as progress:
                frames, notes = made_frames(
                    self.start, self.labeller, self.settings, self.folder, progress
                )
            for note in notes:
                self.notify(f"first {note}")
        write_frames(self.folder.first, frames)

    def _labelled(self, number: int) -> AtomicDataset:
        """Labelled frames that the ensemble of a round is trained on: of all rounds before it."""
        return read_labelled(self._files(number), self.info)

    def _files(self, number: int) -> list[Path]:
        return [self.folder.first, *(self.folder.round(k).labelled for k in range(number))]

    def _round(self, number: int, *, last: bool = False) -> dict[str, Any]:
        """One round; the last one only trains and measures."""
        last = last or number == self.settings.rounds
        folder = self.folder.round(number)
        if folder.record.exists():
            row = read_json(folder.record)
            if last or "labelled" in row:
                return row
        frames = self._labelled(number)
        title = f"round {number}"
        self.stage = f"training the ensemble of {title}"
        if not folder.ensemble.exists():
            self.notify(
                f"{title}: training {self.settings.members} members on {len(frames)} labels"
            )
        with self._shown(f"{title}, training") as progress:
            ensemble = train_ensemble(
                frames, self.recipe, self.settings, number, folder,
                jobs=self.jobs, device=self.device, progress=progress,
            )  # fmt: skip
        row = {"round": number, "labels": len(frames), "errors": self._errors(ensemble, folder)}
        self.notify(f"{title}: {_in_words(row['errors'])}")
        if not last:
            row |= self._acquire(number, folder, ensemble, frames)
        write_json(folder.record, row)
        write_frames(self.folder.labelled, joined(self._files(number if last else number + 1)))
        return row

    def _errors(self, ensemble: Ensemble, folder: RoundFolder) -> dict[str, Any]:
        """Errors on the test frames, or the members' mean errors on those they validate on."""
        if self.test is not None:
            return evaluate_potential(ensemble, self.test).metrics  # type: ignore[arg-type]
        rows = [
            read_json(folder.members / f"member-{k}.run" / "report.json").get("validation") or {}
            for k in range(self.settings.members)
        ]
        return {
            key: float(np.mean([row[key] for row in rows]))
            for key in rows[0]
            if all(isinstance(row.get(key), int | float) for row in rows)
        }

    def _acquire(
        self, number: int, folder: RoundFolder, ensemble: Ensemble, frames: AtomicDataset
    ) -> dict[str, Any]:
        """Sample, choose and label; returns the facts."""
        settings, title = self.settings, f"round {number}"
        self.stage = f"sampling in {title}"
        calculator = DCCalculator(ensemble, device=self.device, dtype=settings.dtype)
        if not self._told_form:
            self._told_form = True
            self.notify(f"form    {calculator.form}")
        assert frames.forces is not None
        starts, limit = choose_starts(
            [_bare(atoms) for atoms in frames], frames.forces, calculator, settings, number
        )
        with self._shown(f"{title}, sampling") as progress:
            samples, facts = sample(
                starts, calculator, settings, number, limit, folder.sample, progress=progress
            )
        self.notify(
            f"{title}: sampled {facts['sampled_ps']:.3g} ps, {facts['walkers_uncertain']} of "
            f"{settings.walkers} walkers stopped above {limit:.3g} eV/A, "
            f"{facts['walkers_broken']} broke"
        )
        if not samples:
            raise DataError(
                f"no walker of {title} left its start (limit {limit:.3g} eV/A): give more first "
                "frames, train longer, or raise --max-uncertainty"
                + (f" ({facts['notes'][0]})" if facts["notes"] else "")
            )
        assert self.claimed is not None
        self.claimed.check(now=True)
        self.stage = f"choosing frames in {title}"
        if not folder.chosen.exists():
            picked = choose(samples, fingerprints_of(frames), settings, number)
            write_frames(folder.chosen, [one.atoms for one in picked])
        chosen = read_structures(folder.chosen)
        self.stage = f"labelling in {title}"
        with self._shown(f"{title}, labels") as progress:
            labelled, notes = label_frames(
                chosen,
                self.labeller,
                folder.labels,
                settings.per_round,
                max_force_eV_A=settings.max_force_eV_A,
                progress=progress,
            )
        for note in notes:
            self.notify(f"{title}: {note}")
        write_frames(folder.labelled, labelled)
        return {
            **facts,
            "limit_eV_A": limit,
            "labelled": len(labelled),
            "uncertainty_of_labelled_eV_A": [float(a.info["uncertainty_eV_A"]) for a in labelled],
            "notes": facts["notes"] + notes,
        }

    # --- what is shown ---------------------------------------------------------------------------

    def _publish(self, rows: list[dict[str, Any]], status: str) -> dict[str, Any]:
        """The learning curve as numbers and picture, and the status."""
        settings = self.settings
        where = "members' validation frames" if self.test is None else "the test set"
        curve = {
            "strategy": settings.strategy,
            "seed": settings.seed,
            "level_of_theory": self.labeller.theory,
            "errors_on": where,
            "test_frames": None if self.test is None else len(self.test),
            "status": status,
            "rounds": rows,
        }
        write_json(self.folder.curve, curve)
        if any(row["errors"].get(PANELS[0][0]) is not None for row in rows):
            save(curve_figure([curve]), self.folder.figure)
        return curve


def _bare(atoms: Atoms) -> Atoms:
    atoms.calc = None
    return atoms


def _in_words(errors: dict[str, Any]) -> str:
    forces, energy = (errors.get(key) for key, _ in PANELS)
    said = [] if forces is None else [f"forces {forces:.4g} meV/A"]
    said += [] if energy is None else [f"energy {energy:.4g} meV"]
    return "mean absolute errors: " + ", ".join(said) if said else "no errors measured"

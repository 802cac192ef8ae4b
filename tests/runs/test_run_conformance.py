"""What every kind of run must do, in one table: kinds and cases.

Each kind is begun for a few steps (:mod:`run_kinds`). Nothing here waits for the clock: the second
start, the move of the folder and the kill come from inside the run.
"""

from __future__ import annotations

import signal

import pytest
from processes import finish, start
from run_kinds import KINDS, begin_and_die, no_pictures, nothing

from dcase.errors import RunError
from dcase.runs import LOCK, RECORD, read_record

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    with no_pictures():
        yield


def content(folder):
    """Every file, folder and byte."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def need(kind):
    if kind.name == "data generate":
        pytest.importorskip("tblite")


def resuming(kind):
    return {"resume": True} if kind.asks else {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of each kind, made once; with its result."""
    made = {}

    def of(kind):
        if kind.name not in made:
            out = tmp_path_factory.mktemp("finished") / "out"
            out.mkdir()
            kind.begin(out, None, nothing)
            made[kind.name] = out, kind.result(out)
        return made[kind.name]

    return of


def stop_in(number):
    """A function that raises when it is called for the ``number``-th time."""
    calls = [0]

    def step(*_):
        calls[0] += 1
        if calls[0] == number:
            raise KeyboardInterrupt

    return step


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of each kind that was stopped, made once: what is refused leaves it as it is."""
    made = {}

    def of(kind):
        if kind.name not in made:
            out = made[kind.name] = tmp_path_factory.mktemp("stopped") / "out"
            out.mkdir()
            with pytest.raises(KeyboardInterrupt):
                kind.begin(out, None, stop_in(3))
        return made[kind.name]

    return of


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    need(request.param)
    return request.param


@pytest.fixture(params=[k for k in KINDS.values() if k.resumable], ids=lambda k: k.name)
def resumable(request):
    need(request.param)
    return request.param


CHANGES = [(kind, change) for kind in KINDS.values() for change in kind.changes]


@pytest.mark.parametrize(("kind", "change"), CHANGES, ids=[f"{k.name}-{c}" for k, c in CHANGES])
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_a_run_is_not_gone_on_with_as_another(finished, stopped, kind, change, state):
    need(kind)
    if state == "finished":
        if not kind.asks:
            pytest.skip("its record goes when it is finished; the file itself is compared")
        out, _ = finished(kind)
    else:
        out = stopped(kind)
    before = content(out)
    with pytest.raises(RunError) as refused:
        kind.begin(out, change, nothing, **resuming(kind))
    assert kind.changes[change] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert content(out) == before


def test_a_run_is_not_replaced_unasked(finished, kind):
    if not kind.asks:
        pytest.skip("the same command finds that it is finished")
    out, _ = finished(kind)
    before = content(out)
    with pytest.raises(RunError, match="--overwrite"):
        kind.begin(out, None, nothing)
    assert content(out) == before


def test_nothing_to_resume(resumable, tmp_path):
    if not resumable.asks:
        pytest.skip("the same command begins")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RunError, match="nothing to resume"):
        resumable.begin(out, None, nothing, resume=True)
    assert content(out) == {}


def test_a_live_run_is_left_alone(kind, finished, tmp_path):
    """Another start beside it is refused, whatever it asks for, and the run comes out the same."""
    out = tmp_path / "out"
    out.mkdir()
    said = []

    def second(*_):
        if said:
            return
        before = content(out)
        ways = [{"overwrite": True}, {}] + ([{"resume": True}] if kind.resumable else [])
        for options in ways:
            try:
                kind.begin(out, None, nothing, **options)
            except RunError as error:
                said.append(str(error))
        assert content(out) == before

    kind.begin(out, None, second)
    assert len(said) == (3 if kind.resumable else 2)
    assert all("another process" in text and "at work" in text for text in said)
    assert kind.result(out) == finished(kind)[1]
    assert not list(out.rglob(LOCK))


def test_a_finished_run_is_resumed_to_the_same(resumable, finished):
    out, result = finished(resumable)
    names = set(content(out))
    resumable.begin(out, None, nothing, **resuming(resumable))
    assert resumable.result(out) == result
    assert set(content(out)) == names


def test_a_stopped_run_goes_on_to_the_same(resumable, finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        resumable.begin(out, None, stop_in(4))
    resumable.begin(out, None, nothing, **resuming(resumable))
    assert resumable.result(out) == finished(resumable)[1]


def test_overwriting_begins_anew(kind, finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    changed = next(iter(kind.changes), None)
    kind.begin(out, changed, nothing)
    other = kind.result(out)
    kind.begin(out, None, nothing, overwrite=True)
    assert kind.result(out) == finished(kind)[1]
    if changed is not None:
        assert other != finished(kind)[1]


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_folder_that_goes_away_ends_the_run(kind, tmp_path, monkeypatch, how):
    """Within a second, of which there is nothing left here, and it is not made again."""
    monkeypatch.setattr("dcase.runs.CHECK_SECONDS", 0.0)
    out = tmp_path / "out"
    out.mkdir()
    folder = kind.place(out).folder
    gone = []

    def away(*_):
        if not gone and folder.exists():
            gone.append(tmp_path / "elsewhere")
            folder.rename(gone[0])
            if how == "removed":
                import shutil

                shutil.rmtree(gone[0])

    with pytest.raises(RunError, match="was moved, removed or replaced"):
        kind.begin(out, None, away)
    assert not folder.exists()
    if how == "moved":
        gone[0].rename(folder)
        assert read_record(folder)["kind"] == kind.name.partition(",")[0]
        (folder / LOCK).unlink(missing_ok=True)
        options = resuming(kind) if kind.resumable else {"overwrite": True}
        kind.begin(out, None, nothing, **options)
        kind.result(out)


def test_the_record_says_what_it_is(kind, finished):
    if not kind.asks:
        pytest.skip("its record goes when it is finished")
    out, _ = finished(kind)
    record = read_record(kind.place(out).folder)
    assert record["kind"] == kind.name.partition(",")[0]
    assert record["status"] == "finished"


# Of the first writes (record, first checkpoint), and one well inside of the run.
@pytest.mark.parametrize(
    "number", [1, 2, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 7)), 12]
)
def test_a_kill_within_a_write_loses_nothing(resumable, finished, tmp_path, number):
    out = tmp_path / "out"
    out.mkdir()
    killed = finish(start(begin_and_die, resumable.name, out, number)) == -signal.SIGKILL
    if not killed:
        pytest.skip("it makes fewer writes")
    options = resuming(resumable)
    if not resumable.place(out).record.exists():
        options = {}  # nothing was written yet: the same command begins
    resumable.begin(out, None, nothing, **options)
    assert resumable.result(out) == finished(resumable)[1]
    assert not [p for p in out.rglob(".*") if p.name != RECORD]

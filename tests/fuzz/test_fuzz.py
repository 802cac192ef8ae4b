"""Damaged files end in one clear line, or in what was in them; never in a traceback or a crash."""

import json

import fuzz_campaign as campaign
import fuzz_formats as formats
import fuzz_mutations as mutations
import pytest

OWN = [name for name, kind in formats.FORMATS.items() if kind.ours]


def judge(found):
    """Everything that no reader may do."""
    bad = [
        (name, trial)
        for name, trials in found.items()
        for trial in trials
        if trial[1] in ("unclear", "traceback", "crash")
        or (trial[1] == "changed" and formats.FORMATS[name].ours)
    ]
    assert not bad, f"{len(bad)}, the first: {bad[0]}\n{campaign.table(found)}"


def test_a_few_damaged_files_of_every_kind(tmp_path):
    found = campaign.run(tmp_path, list(formats.FORMATS), 15)
    assert all(len(trials) == 15 for trials in found.values())
    judge(found)
    for name in OWN:  # the damage is damage, and most of it is noticed
        assert sum(result == "refused" for _, result, _ in found[name]) > 7


@pytest.mark.slow
def test_many_damaged_files_of_every_kind(tmp_path):
    found = campaign.run(tmp_path, list(formats.FORMATS), 100, first=100)
    print(campaign.table(found))
    judge(found)


def test_a_reader_that_crashes_is_seen_and_the_others_go_on(tmp_path, monkeypatch):
    """The campaign itself, with a worker that dies, raises and changes what it reads."""
    worker = tmp_path / "fuzz_worker.py"
    worker.write_text(
        "import json, os, sys\n"
        "for name, (first, last) in json.loads(sys.argv[2]).items():\n"
        "    for seed in range(first, last):\n"
        "        print(json.dumps({'start': [name, seed]}), flush=True)\n"
        "        if seed == 1: os.abort()\n"
        "        print(json.dumps({'end': [name, seed, 'same', '']}), flush=True)\n"
    )
    monkeypatch.setattr(campaign, "__file__", str(tmp_path / "campaign.py"))
    found = campaign.run(tmp_path, ["recipe", "LMDB"], 3)
    for trials in found.values():
        assert [(seed, result) for seed, result, _ in trials] == [
            (0, "same"),
            (1, "crash"),
            (2, "same"),
        ]
    with pytest.raises(AssertionError, match="2, the first"):
        judge(found)


def test_damage_is_the_same_for_the_same_seed_and_differs_between_seeds():
    content = json.dumps({"a": 1.5, "b": ["x", 2, {"c": True}]}).encode() * 3
    for mutate in (mutations.damaged, mutations.damaged_text):
        made = [mutate(content, seed) for seed in range(50)]
        assert made == [mutate(content, seed) for seed in range(50)]
        assert len(set(made)) > 30
    document = json.dumps({"a": 1.5, "b": ["x", 2, {"c": True}]}).encode()
    assert len({mutations.damaged_json(document, seed) for seed in range(50)}) > 20

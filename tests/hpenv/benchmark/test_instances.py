"""Instances and suites: what a digest covers, and what the shipped suites hold."""

from pathlib import Path

import pytest

from hpenv.benchmark import scoring
from hpenv.benchmark.generate import GENERATORS, LEAST_LR, MOST_LR, SHIFTS, TEXTS, VALUES
from hpenv.benchmark.instances import Instance, load_suite, seed_of, suite_names
from tests.hpenv.benchmark.tiny_suite import CHANGES, JEL, TINY, row_of, tiny_suite


@pytest.fixture(scope="module")
def base_row(tmp_path_factory):
    return row_of(TINY, tmp_path_factory.mktemp("base"))


def test_every_argument_of_the_suites_is_changed_below():
    named = {
        name for instance in load_suite("pretraining-v1").instances for name in instance.arguments
    }
    assert named == set(CHANGES) == set(TINY)


@pytest.mark.parametrize("argument", CHANGES)
def test_every_field_changes_digest_and_trajectory(argument, base_row, tmp_path):
    changed = TINY | {argument: CHANGES[argument]}
    if argument == "tokenizer":  # of text, which `synthetic` is not
        text = tmp_path / "text.txt"
        text.write_text("to be or not to be, that is the question. " * 400)
        base, changed = TINY | {"data": str(text)}, changed | {"data": str(text)}
        row = row_of(base, tmp_path / "base")
    else:
        base, row = TINY, base_row
    other = row_of(changed, tmp_path / "other")

    assert Instance("a", JEL, changed).digest != Instance("a", JEL, base).digest
    assert other["final"] != row["final"]
    if argument != "eval_tokens":  # it changes what is measured, not what is trained
        assert other["curve"] != row["curve"]


def test_digest_is_that_of_the_content():
    instance = Instance("a", JEL, TINY)
    reordered = dict(sorted(TINY.items(), reverse=True))
    assert Instance("b", JEL, reordered, "train", "x").digest == instance.digest
    assert Instance("a", "TrainLoop-Cell-v0", TINY).digest != instance.digest


@pytest.mark.parametrize("name", GENERATORS)
def test_suites_are_what_their_generators_make(name):
    assert (Path(scoring.__file__).parent / "suites" / f"{name}.json").read_text() == GENERATORS[
        name
    ]().text()
    assert load_suite(name) == GENERATORS[name]()


def test_every_generator_has_a_suite():
    assert suite_names() == sorted(GENERATORS)


def test_shifted_instances_leave_the_ranges_in_one_factor():
    suite = load_suite("pretraining-v1")
    assert (len(suite.train), len(suite.test)) == (20, 20)
    drawn = [each for each in suite.instances if not each.shift]
    assert len(drawn) == 30
    for instance in drawn:
        assert LEAST_LR <= instance.arguments["base_lr"] <= MOST_LR
        assert all(instance.arguments[name] in values for name, values in VALUES.items())
        assert instance.arguments["data"] in TEXTS[instance.split]

    for name in SHIFTS:
        shifted = suite.instance(f"shift-{name}").arguments
        outside = [
            key
            for key, values in VALUES.items()
            if key != "base_weight_decay" and shifted[key] not in values
        ]
        outside += ["base_lr"] if not LEAST_LR <= shifted["base_lr"] <= MOST_LR else []
        outside += ["data"] if shifted["data"] not in TEXTS["test"] else []
        outside += ["preset"] if shifted["preset"] != "nano" else []
        assert len(outside) == 1, (name, outside)


def test_train_and_test_texts_are_disjoint_halves():
    assert set(TEXTS["train"]).isdisjoint(TEXTS["test"])
    for train, test in zip(TEXTS["train"], TEXTS["test"], strict=True):
        assert (train.partition("@")[0] == test.partition("@")[0]) or train.startswith("synthetic")


def test_seeds_are_a_hash_of_suite_and_instance():
    suite = tiny_suite()
    first, second = (suite.seeds(instance) for instance in suite.test)
    assert first == [seed_of("tiny", suite.test[0].digest, i) for i in range(3)]
    assert set(first).isdisjoint(second)
    assert load_suite("jel-nano").seeds(load_suite("jel-nano").test[0])[0] == 1390458952


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "name must be letters"),
        ({"name": "../a"}, "name must be letters"),
        ({"split": "validation"}, "split must be one of"),
        ({"arguments": {"channels": "shared"}}, "must leave out .*got \\['channels'\\]"),
        ({"arguments": {"seed_mode": "grouped"}}, "belong to the controller or to the score"),
    ],
)
def test_wrong_instances_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Instance(**({"name": "a", "env_id": JEL, "arguments": {}} | change))


def test_unknown_suites_are_refused_with_the_names(tmp_path):
    with pytest.raises(ValueError, match=r"one of .*'smoke'.*did you mean 'smoke'"):
        load_suite("smok")
    broken = tmp_path / "broken.json"
    broken.write_text('{"name": "broken"}')
    with pytest.raises(ValueError, match="must be a suite; its keys must be"):
        load_suite(broken)

"""The benchmark: instances, suites, rows, scores, and the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpenv.benchmark import __main__ as program
from hpenv.benchmark import rows as rows_module
from hpenv.benchmark import scoring
from hpenv.benchmark.generate import GENERATORS, LEAST_LR, MOST_LR, SHIFTS, TEXTS, VALUES
from hpenv.benchmark.instances import Instance, Suite, load_suite, seed_of, suite_names
from hpenv.benchmark.references import Reference, References
from hpenv.benchmark.rows import OFF, Method, blocks_of, compute_block, is_done, read_rows
from hpenv.policies import ControllerSpec

JEL = "TrainLoop-JEL-v0"
TINY = {
    "preset": "nano",
    "data": "synthetic:3",
    "tokenizer": "bytes",
    "optimizer": "adamw_muon",
    "base_lr": 1e-3,
    "base_weight_decay": 0.1,
    "batch_tokens": 64,
    "sequence_length": 32,
    "num_steps": 8,
    "schedule": "none",
    "eval_tokens": 128,
    "interval": 4,
}
#: Argument -> another value of it.
CHANGES = {
    "preset": "nano-wide",
    "data": "synthetic:4",
    "tokenizer": "bpe:300",
    "optimizer": "adamw",
    "base_lr": 2e-3,
    "base_weight_decay": 0.9,
    "batch_tokens": 96,
    "sequence_length": 64,
    "num_steps": 9,
    "schedule": "cosine",
    "eval_tokens": 256,
    "interval": 2,
}


class Braking:
    """High rate at the start, base rate at the end."""

    spec = ControllerSpec(channels=[("lr", "run")], observation=["progress"])

    def act(self, observations):
        return np.float32(0.8) * (1 - observations[:, :1])


class Failing(Braking):
    """Raises at the first decision."""

    def act(self, observations):
        raise RuntimeError("no idea")


class TwentyTimes:
    """A baseline: twenty times the base rate."""

    spec = ControllerSpec()

    def arguments(self, instance):
        return {"base_lr": 20 * instance.arguments["base_lr"], "channels": []}

    def act(self, observations):
        return np.zeros((len(observations), 0), dtype=np.float32)


def tiny_suite(num_seeds=3, block_size=2):
    instances = (
        Instance("first", JEL, TINY),
        Instance("second", JEL, TINY | {"data": "synthetic:5"}),
        Instance("practice", JEL, TINY, "train"),
    )
    return Suite("tiny", "two instances of a test", num_seeds, block_size, instances)


def row_of(arguments, folder):
    """A row of Braking on an instance with these arguments."""
    suite = Suite("one", "one instance", 1, 1, (Instance("only", JEL, arguments),))
    (block,) = blocks_of(suite, Method("braking", Braking()), folder)
    compute_block(block)
    return read_rows([folder])[0]


@pytest.fixture(scope="module")
def base_row(tmp_path_factory):
    return row_of(TINY, tmp_path_factory.mktemp("base"))


# Instances and suites


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


# Rows


def test_rows_are_the_same_bytes_whatever_was_interrupted(tmp_path):
    method = Method("braking", Braking(), "d")
    for folder in ("whole", "halves"):
        for number, block in enumerate(blocks_of(tiny_suite(), method, tmp_path / folder)):
            if folder == "halves" and number == 1:
                block.file.parent.joinpath(f".{block.file.name}.1.tmp").write_text("half a li")
            assert not is_done(block)
            compute_block(block)
            assert is_done(block)

    whole, halves = (
        {file.name: file.read_bytes() for file in (tmp_path / folder / "braking").glob("*.jsonl")}
        for folder in ("whole", "halves")
    )
    assert whole == halves and len(whole) == 4
    rows = read_rows([tmp_path / "whole", tmp_path / "halves"])
    assert len(rows) == 6
    assert rows == read_rows([tmp_path / "halves"])


def test_another_number_under_the_same_key_is_an_error_that_shows_both(tmp_path):
    suite = tiny_suite(num_seeds=1, block_size=1)
    block = blocks_of(suite, Method("braking", Braking()), tmp_path / "one")[0]
    compute_block(block)
    copied = tmp_path / "two" / "first.jsonl"
    copied.parent.mkdir()
    row = json.loads(block.file.read_text())
    copied.write_text(json.dumps(row | {"final": 1.25}) + "\n")
    with pytest.raises(ValueError, match=rf"{row['final']}.*1\.25"):
        read_rows([tmp_path])


def test_rows_of_another_controller_or_other_seeds_are_refused(tmp_path):
    suite = tiny_suite(num_seeds=2)
    compute_block(blocks_of(suite, Method("braking", Braking(), "old"), tmp_path)[0])
    with pytest.raises(ValueError, match=r"'controller_digest': 'new'.*give the method another"):
        is_done(blocks_of(suite, Method("braking", Braking(), "new"), tmp_path)[0])
    with pytest.raises(ValueError, match="must hold the seeds"):
        is_done(blocks_of(suite, Method("braking", Braking(), "old"), tmp_path, seeds=1)[0])


def test_curves_of_a_row_have_at_most_64_points(tmp_path):
    row = row_of(TINY | {"num_steps": 80, "interval": 1, "batch_tokens": 32}, tmp_path)
    assert [len(row["curve"][name]) for name in ("steps", "probe_loss")] == [64, 64]
    assert row["curve"]["steps"][0] == 0 and row["curve"]["steps"][-1] == 80
    assert len(row["panel"]["lr"]) == 64


# Scores


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with rows of three methods, the references, and the result of a score."""
    folder = tmp_path_factory.mktemp("scored")
    suite = tiny_suite(num_seeds=5, block_size=5)
    values = {}
    with pytest.MonkeyPatch.context() as patch:
        corpora = {}
        for instance in suite.test:
            (block,) = blocks_of(Suite("x", "", 1, 1, (instance,)), Method("a", None), folder / "x")
            compute_block(block)
            corpora[instance.digest] = read_rows([block.file])[0]["corpus"]
        values = {
            digest: Reference(4.0, corpus, {"base_lr": 0.02}) for digest, corpus in corpora.items()
        }
        patch.setattr(scoring, "load_references", lambda name: values)
        result = scoring.score(Braking(), suite, executor="inline", folder=folder)
        scoring.score(TwentyTimes(), suite, executor="inline", folder=folder, name="twenty")
        result = scoring.score(Braking(), suite, executor="inline", folder=folder)
    return folder, suite, values, result


def test_off_is_zero_and_every_score_follows_from_the_rows(scored):
    folder, suite, _, result = scored
    rows = read_rows([folder / "tiny" / "rows"])
    off = {row["seed"]: row["final"] for row in rows if row["method"] == OFF}
    standings = {standing.method: standing for standing in result.board.standings}
    assert not standings[OFF].scores.any()

    for method, standing in standings.items():
        finals = {row["seed"]: row["final"] for row in rows if row["method"] == method}
        for i, instance in enumerate(suite.test):
            seeds = suite.seeds(instance)
            base = np.mean([off[seed] for seed in seeds])
            expected = [(off[seed] - finals[seed]) / (base - 4.0) for seed in seeds]
            assert standing.scores[i] == pytest.approx(np.clip(expected, -1, 1.5), abs=1e-12)


def test_a_better_controller_ranks_higher(scored):
    _, _, _, result = scored
    names = [standing.method for standing in result.board.standings]
    assert names[0] == OFF
    assert result.board.rank("twenty") < result.board.rank(OFF) == 3
    assert result.standing.against_off.difference.mean > 0
    assert "rank" in str(result) and str(result.page) in str(result)
    assert result.page.read_text().count("twenty") > 1


def test_a_rank_needs_five_seeds(scored, tmp_path, monkeypatch):
    _, _, values, _ = scored
    monkeypatch.setattr(scoring, "load_references", lambda name: values)
    result = scoring.score(Braking(), tiny_suite(num_seeds=2), executor="inline", folder=tmp_path)
    assert "no rank: 2 seeds" in str(result)
    with pytest.raises(ValueError, match="a rank needs at least 5 seeds"):
        result.board.rank("braking")


def test_on_another_text_the_reference_is_run_again(tmp_path, monkeypatch):
    suite = tiny_suite(num_seeds=2)
    references = {
        instance.digest: Reference(1.0, "another text", {"base_lr": 0.02})
        for instance in suite.test
    }
    monkeypatch.setattr(scoring, "load_references", lambda name: references)
    monkeypatch.setattr(
        scoring,
        "reference_method",
        lambda suite: Method("reference", References(suite.name, references)),
    )
    result = scoring.score(Braking(), suite, executor="inline", folder=tmp_path)
    rerun = [row for row in read_rows([tmp_path]) if row["method"] == "reference"]
    for i, instance in enumerate(suite.test):
        finals = [row["final"] for row in rerun if row["instance"] == instance.name]
        assert result.board.reference[i] == pytest.approx(np.median(finals))


def test_a_diverged_run_is_counted_and_gets_the_lowest_score(scored):
    folder, suite, values, _ = scored
    rows = read_rows([folder / "tiny" / "rows"])
    for row in rows:
        if row["method"] == "braking" and row["seed"] == suite.seeds(suite.test[0])[1]:
            row["divergence_reason"], row["final"] = "loss_nonfinite", None
    board = scoring.make_board(suite, rows, values)
    standing = next(each for each in board.standings if each.method == "braking")
    assert standing.diverged == 1
    assert standing.scores[0, 1] == -1.0 and np.isnan(standing.values[0, 1])


def test_methods_without_all_rows_are_named_and_left_out(scored):
    folder, suite, values, _ = scored
    rows = read_rows([folder / "tiny" / "rows"])
    last = next(i for i, row in enumerate(rows) if row["method"] == "twenty")
    board = scoring.make_board(suite, rows[:last] + rows[last + 1 :], values)
    assert board.unfinished == ("twenty (9 of 10 rows)",)
    assert "twenty" not in [standing.method for standing in board.standings]


def test_a_controller_that_raises_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"failing on first.*no idea"):
        scoring.run_methods(
            tiny_suite(), [Method("failing", Failing())], tmp_path, executor="inline"
        )


# The command line


@pytest.fixture
def project(tmp_path, monkeypatch, scored):
    """A working folder with a controller in a file and a suite in another."""
    _, suite, values, _ = scored
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom hpenv.policies import ControllerSpec\n\n\n"
        "class Mine:\n"
        "    spec = ControllerSpec(channels=[('lr', 'run')], observation=['progress'])\n\n"
        "    def act(self, observations):\n"
        "        return np.full((len(observations), 1), 0.5, np.float32)\n"
    )
    (tmp_path / "tiny.json").write_text(suite.text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "load_references", lambda name: values)
    return tmp_path


def test_run_missing_and_board_of_a_controller_in_a_file(project, capsys):
    common = ["--suite", "tiny.json", "--folder", "out"]
    program.main(["missing", "mine.py:Mine", *common])
    assert len(capsys.readouterr().out.splitlines()) == 10
    program.main(["run", "mine.py:Mine", *common, "--executor", "inline", "--tuning", "3"])
    printed = capsys.readouterr().out
    assert "mine on tiny: score" in printed and "rank 1 of 2" in printed
    program.main(["missing", "mine.py:Mine", *common])
    assert capsys.readouterr().out == ""
    row = read_rows([project / "out"])[0]
    assert row["costs"] == {"tuning": 3.0} and len(row["controller_digest"]) == 12

    before = (project / "out/tiny/board.html").read_bytes()
    program.main(["board", *common])
    assert "| mine" in capsys.readouterr().out
    assert (project / "out/tiny/board.html").read_bytes() == before

    with (project / "mine.py").open("a") as file:
        file.write("# another version\n")
    with pytest.raises(SystemExit):
        program.main(["run", "mine.py:Mine", *common, "--executor", "inline"])
    assert "give the method another name" in capsys.readouterr().err


def test_list_and_generate(capsys):
    program.main(["list"])
    assert "pretraining-v1" in capsys.readouterr().out
    program.main(["list", "smoke"])
    assert len(capsys.readouterr().out.splitlines()) == 4
    program.main(["generate", "smoke"])
    assert capsys.readouterr().out == GENERATORS["smoke"]().text()


def test_validate_computes_a_submission_again(project, capsys):
    program.main(
        ["run", "mine.py:Mine", "--suite", "tiny.json", "--folder", "out", "--executor", "inline"]
    )
    place = project / "submission"
    (place / "rows").mkdir(parents=True)
    shutil.copy("mine.py", place)
    shutil.copytree("out/tiny/rows/mine", place / "rows/mine")
    (place / "submission.toml").write_text(
        'name = "mine"\nsuite = "tiny.json"\ncontroller = "mine.py:Mine"\nauthors = ["A. Nonym"]\n'
        'description = "half way up"\nmeta_training = 0.0\ntuning = 0.0\n'
    )
    capsys.readouterr()
    program.main(["validate", str(place)])
    assert "2 blocks, each twice, bitwise equal; equal to the submitted rows" in (
        capsys.readouterr().out
    )

    file = next((place / "rows/mine").glob("second*.jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["final"] += 1e-6
    file.write_text("".join(rows_module.line_of(row) for row in rows))
    with pytest.raises(SystemExit):
        program.main(["validate", str(place)])
    assert "must have the submitted number" in capsys.readouterr().err


def test_score_refuses_more_seeds_than_the_suite_has(tmp_path):
    with pytest.raises(ValueError, match="seeds must be from 1 to 3"):
        scoring.score(Braking(), tiny_suite(), seeds=4, executor="inline", folder=tmp_path)

"""Scores: their formula, ranks, divergence, missing rows and other texts."""

import numpy as np
import pytest

from hpenv.benchmark import scoring
from hpenv.benchmark.methods import OFF, Method
from hpenv.benchmark.references import Reference, References
from hpenv.benchmark.rows import line_of, read_rows
from tests.hpenv.benchmark.tiny_suite import Braking, Failing, tiny_suite


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


def test_score_refuses_more_seeds_than_the_suite_has(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "load_references", lambda name: scored[2])
    with pytest.raises(ValueError, match="seeds must be from 1 to 3"):
        scoring.score(Braking(), tiny_suite(), seeds=4, executor="inline", folder=tmp_path)


def test_the_field_is_ranked_also_on_another_text(scored, tmp_path, monkeypatch):
    """Rows of the field keep the scale of their text. One's own have that of this machine."""
    folder, suite, values, result = scored
    rows = read_rows([folder / "tiny" / "rows"])
    foreign = [row | {"corpus": "theirs"} for row in rows if row["method"] != "braking"]
    (tmp_path / "tiny.jsonl").write_text("".join(map(line_of, foreign)))
    theirs = {
        digest: Reference(each.value, "theirs", {"base_lr": 0.02})
        for digest, each in values.items()
    }
    monkeypatch.setattr(scoring, "FIELD", tmp_path)
    monkeypatch.setattr(scoring, "load_references", lambda name: theirs)
    own = [row for row in rows if row["method"] in ("braking", OFF)]
    reruns = [row | {"method": "reference", "final": 4.0} for row in own if row["method"] == OFF]
    place = tmp_path / "place"
    (place / "rows").mkdir(parents=True)
    (place / "rows/own.jsonl").write_text("".join(map(line_of, [*own, *reruns])))

    board, _ = scoring.write_board(suite, place)
    before = {each.method: each.scores for each in result.board.standings}
    assert {each.method for each in board.standings} == set(before)
    for standing in board.standings:
        assert standing.scores == pytest.approx(before[standing.method])


def test_a_suite_without_references_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(ValueError, match=r"must have a reference; \['first', 'second'\] have none"):
        scoring.score(Braking(), tiny_suite(), executor="inline", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_reference_that_is_worse_than_off_is_refused(scored):
    folder, suite, values, _ = scored
    rows = read_rows([folder / "tiny" / "rows"])
    worse = {digest: Reference(9.0, each.corpus, {}) for digest, each in values.items()}
    with pytest.raises(ValueError, match="reference of first must be better than 'off'; got 9"):
        scoring.make_board(suite, rows, worse)


@pytest.mark.parametrize("final", [None, 9.0])
def test_a_diverged_run_of_off_moves_no_other_score_much(scored, final):
    folder, suite, values, result = scored
    rows = read_rows([folder / "tiny" / "rows"])
    for row in rows:
        if row["method"] == OFF and row["seed"] == suite.seeds(suite.test[0])[0]:
            row["divergence_reason"], row["final"] = "loss_above_limit", final
    standings = {each.method: each for each in scoring.make_board(suite, rows, values).standings}
    assert standings[OFF].scores[0, 0] == -1.0
    before = next(each for each in result.board.standings if each.method == "twenty")
    assert standings["twenty"].scores == pytest.approx(before.scores, abs=0.1)


def test_rows_of_two_controllers_under_one_name_are_refused(scored):
    folder, suite, values, _ = scored
    rows = read_rows([folder / "tiny" / "rows"])
    next(row for row in rows if row["method"] == "twenty")["controller_digest"] = "other"
    with pytest.raises(ValueError, match=r"'twenty' must be of one controller; got .*'other'"):
        scoring.make_board(suite, rows, values)
    with pytest.raises(ValueError, match="num_seeds must be from 1 to 5; got 20"):
        scoring.make_board(suite, rows, values, num_seeds=20)


def test_two_methods_of_one_name_are_refused(tmp_path):
    methods = [Method("braking", Braking()), Method("braking", Failing())]
    with pytest.raises(ValueError, match="methods must have different names"):
        scoring.run_methods(tiny_suite(), methods, tmp_path, executor="inline")


def test_rows_of_a_named_controller_are_not_removed_for_an_object(scored, tmp_path, monkeypatch):
    folder, suite, values, _ = scored
    monkeypatch.setattr(scoring, "load_references", lambda name: values)
    rows = [row for row in read_rows([folder]) if row["method"] == "braking"]
    place = tmp_path / "tiny" / "rows" / "braking"
    place.mkdir(parents=True)
    (place / "a.jsonl").write_text(line_of(rows[0] | {"controller_digest": "named"}))
    with pytest.raises(ValueError, match="holds those of a named controller"):
        scoring.score(Braking(), suite, executor="inline", folder=tmp_path)
    assert (place / "a.jsonl").exists()

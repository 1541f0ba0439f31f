"""The comparison of model sizes: real runs of three methods, and correlations by hand."""

import json

import pytest

from baselines import sizes


def test_correlations_by_hand():
    scores = {
        "small": {"a": [1.0, 3.0], "b": [3.0, 3.0], "c": [4.0, 4.0]},
        "same": {"a": [0.0, 0.0], "b": [5.0, 7.0], "c": [9.0, 9.0]},
        "turned": {"a": [9.0, 9.0], "b": [2.0, 2.0], "c": [1.0, 1.0]},
        "half": {"a": [2.0, 2.0], "b": [1.0, 1.0], "c": [9.0, 9.0]},
    }
    found = sizes.correlations(scores, "small")
    assert found == pytest.approx({"same": 1.0, "turned": -1.0, "half": 0.5})


def test_every_method_runs_at_every_size_on_the_same_seeds(tmp_path, capsys):
    out = tmp_path / "sizes.json"
    sizes.main(
        ["--presets", "nano", "nano-wide", "--methods", "off", "constant", "update_ratio",
         "--num-steps", "20", "--batch-tokens", "64", "--seeds", "2", "--executor", "inline",
         "--out", str(out)]
    )  # fmt: skip
    result = json.loads(out.read_text())
    pairs = {(row["preset"], row["method"]) for row in result["rows"]}
    assert len(pairs) == len(result["rows"]) == 6
    by_method = {row["method"]: row["bpb"] for row in result["rows"] if row["preset"] == "nano"}
    assert all(len(values) == 2 and 0 < min(values) < 8.0 for values in by_method.values())
    assert by_method["constant"] < by_method["off"]  # 0.01 against 0.001
    assert -1 <= result["extra"]["rank_correlation"]["nano-wide"] <= 1
    assert "rank correlation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ("nothing",)}, "methods must be of"),
        ({"presets": ("nano",)}, "presets must be two at least"),
        ({"seeds": 0}, "seeds must be"),
    ],
)
def test_errors_say_what_is_accepted(arguments, message):
    with pytest.raises(ValueError, match=message):
        sizes.SizesConfig(**arguments)

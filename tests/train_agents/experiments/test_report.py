"""Pairs of arms, samples, and pages without results."""

import numpy as np
import pytest

from tests.train_agents.experiments.made_up_results import result_row
from train_agents.experiments import report
from train_agents.experiments.samples import Sample, bits_per_byte, samples
from train_agents.experiments.sidecar_claims import in_both_units


def test_arms_are_paired_over_the_seeds_in_common_in_bits_and_in_perplexity():
    ours = in_both_units({"bpb": Sample((1, 2, 3), np.array([[1.0, 2.0, 9.0]]))})
    reference = in_both_units({"bpb": Sample((1, 2), np.array([[2.0, 4.0]]))})
    np.testing.assert_allclose(ours["bpb"].below(reference["bpb"]), [0.5, 0.5, 0.5])
    difference = ours["bpb"].below(reference["bpb"], relative=False)
    assert difference[0] == pytest.approx(1.5)
    found = ours["perplexity"].below(reference["perplexity"])
    assert found[0] == pytest.approx((0.5 + 0.75) / 2)
    assert Sample((1,), np.array([[1.0]])).below(reference["bpb"]) == [0.5]
    with pytest.raises(ValueError, match=r"must have seeds in common to be paired; got \(7,\)"):
        Sample((7,), np.array([[1.0]])).below(reference["bpb"])


def test_results_of_the_same_seeds_are_controllers_and_those_of_others_are_more_runs():
    def job(**bpbs):
        return {"rows": [result_row(int(seed[1:]), value) for seed, value in bpbs.items()]}

    controllers = samples([job(s1=1.0, s2=2.0), job(s1=3.0, s2=4.0)], bits_per_byte)["bpb"]
    assert controllers.seeds == (1, 2) and controllers.values.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    joined = samples([job(s1=1.0), job(s2=2.0)], bits_per_byte)["bpb"]
    assert joined.seeds == (1, 2) and joined.values.tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="controllers must have the same seeds to be paired"):
        samples([job(s1=1.0, s2=2.0), job(s2=1.0, s3=2.0)], bits_per_byte)


def test_a_page_leaves_out_paragraphs_and_sections_without_results():
    template = (
        "# Title\n\nWords.\n\n## One\n\n{{there a b}}\nCaption {{made}}.\n\nWords of one.\n\n"
        "## Two\n\nWords of two.\n\n{{missing}}\nCaption {{made}}.\n\n### Below\n\n{{missing}}\n\n"
        "## Three\n\n{{missing}}\n\n### Below three\n\n{{made}}\n"
    )
    parts = {
        "there": lambda first, second: f"[{first}, {second}]",
        "missing": lambda: "",
        "made": lambda: "by hand",
    }
    page = report.render(template, parts)
    assert page == (
        "# Title\n\nWords.\n\n## One\n\n[a, b]\nCaption by hand.\n\nWords of one.\n\n"
        "## Three\n\n### Below three\n\nby hand\n"
    )
    with pytest.raises(ValueError, match="a template calls 'other'; expected one of"):
        report.render("{{other}}", parts)

"""Every number of README and notes that results/CLAIMS.md lists, recomputed from the job files."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from train_agents.experiments.claims import mismatch, read_claims, recompute

ALL = read_claims()
#: Pages whose numbers with an interval all have a claim, and the heading after the last of them.
PAGES = {"README.md": "## What it promises", "results/README.md": "## Reward hacking"}


@pytest.mark.parametrize("claim", ALL, ids=lambda claim: claim.name)
def test_a_claim_is_what_the_files_say(claim):
    assert not mismatch(claim)


def test_a_wrong_number_a_missing_sentence_and_a_wrong_source_are_found():
    claim = next(claim for claim in ALL if claim.printed == "3.307 [3.302, 3.313]")
    assert "has no paragraph" in mismatch(replace(claim, printed="3.317 [3.302, 3.313]"))
    assert "has no paragraph" in mismatch(replace(claim, words="no such words"))
    other = next(claim for claim in ALL if claim.source == 'mean("jel", "baseline_constant")')
    assert "wrong: 3.307 for 3.24" in mismatch(replace(claim, source=other.source))
    with pytest.raises(ValueError, match="source must be one call of"):
        recompute(replace(claim, source="__import__('os').getcwd()"))


@pytest.mark.parametrize("page", PAGES)
def test_every_number_with_an_interval_has_a_claim(page):
    text = Path(page).read_text(encoding="utf-8")
    part = text[: text.index(PAGES[page])]
    stated = re.findall(r"[-+]?\d+\.\d+ ?%? \[[^\]]*\]", part)
    printed = " ".join(claim.printed for claim in ALL if claim.document == page)
    zero = "+0.0 % [+0.0, +0.0]"  # a method against itself
    assert stated
    assert not [number for number in stated if number not in printed and number != zero]


def test_no_sentence_waits_for_a_number():
    for document in (
        Path("README.md"),
        Path("results/README.md"),
        *Path("results").glob("*/NOTES.md"),
    ):
        assert "@@" not in document.read_text(encoding="utf-8"), document

"""Programs of pairs, executed on inputs."""

import re

import pytest

from hpenv.posttraining.contrastive.pairs import FALSE_CHECKS, PAIRS

CHEATS = [pair for pair in PAIRS if pair.flavour not in FALSE_CHECKS]
FALSE = [pair for pair in PAIRS if pair.flavour in FALSE_CHECKS]


def named(pairs):
    return pytest.mark.parametrize("pair", pairs, ids=[pair.name for pair in pairs])


def flavoured(flavour):
    return [pair for pair in PAIRS if pair.flavour == flavour]


def signature(program):
    return re.match(r"def (g\(.*?\)):\n", program).group(1)


def description(pair):
    return pair.prompt.split("\n")[0]

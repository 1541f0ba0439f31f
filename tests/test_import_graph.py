"""Every kind of import is read from a source, and a cycle among modules is found."""

from tests.import_graph import Import, find_cycle, imports_of


def test_every_kind_of_import_is_found():
    source = """
import torch.nn as nn, json
from hpenv.lm import data
from hpenv.lm.data import Corpus
from . import sibling
from ..env import TrainLoopEnv
class A:
    import abc
    def f(self):
        from rich import print
        async def g(): importlib.import_module("cma")
"""
    known = {"hpenv.lm.data", "hpenv.env", "hpenv.envs.sibling"}
    assert imports_of(source, "hpenv.envs.jel", False, known) == [
        Import("torch.nn", 2, False),
        Import("json", 2, False),
        Import("hpenv.lm.data", 3, False),
        Import("hpenv.lm.data", 4, False),
        Import("hpenv.envs.sibling", 5, False),
        Import("hpenv.env", 6, False),
        Import("abc", 8, False),
        Import("rich", 10, True),
        Import("cma", 11, True),
    ]
    in_package = imports_of("from . import sibling\nfrom ..env import E", "hpenv.envs", True, known)
    assert [i.target for i in in_package] == ["hpenv.envs.sibling", "hpenv.env"]


def test_a_cycle_is_found_and_named():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None

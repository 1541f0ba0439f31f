"""Ray and Slurm: the same results as on one process, also when a node is lost.

Both packages are extras that the lock leaves out, so these tests run where they are installed.
"""

import math
import os
import random
import time
from functools import partial
from pathlib import Path

import pytest

from hpenv.benchmark.executors import WorkError, open_executor, run_all
from hpenv.benchmark.instances import Instance, Suite
from hpenv.benchmark.methods import Method
from hpenv.benchmark.rows import blocks_of, compute_block, is_done
from tests.hpenv.benchmark.tiny_suite import JEL, TINY, Braking
from tests.paths import ROOT

NUM_LOSSES = 20


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Workers import this repository."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def check(form):
    with open_executor(form) as executor:
        assert dict(run_all(math.factorial, [3, 4], executor)) == {3: 6, 4: 24}
        with pytest.raises(WorkError, match=r"1 pieces of work failed: \{'-1'"):
            list(run_all(math.sqrt, [4, -1], executor))


@pytest.mark.slow
def test_ray_computes_every_piece_and_names_those_that_failed():
    pytest.importorskip("ray")
    check("ray")


@pytest.mark.slow
def test_slurm_computes_every_piece_and_names_those_that_failed(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    check("slurm:local")


def blocks(folder):
    instances = tuple(
        Instance(f"rate-{number}", JEL, TINY | {"num_steps": 100, "base_lr": 1e-3 * (1 + number)})
        for number in range(20)
    )
    suite = Suite("lost", "instances of a test", 4, 2, instances)
    return blocks_of(suite, Method("braking", Braking()), folder)


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.rglob("*.jsonl"))}


def compute_slowly(seconds, block):
    """A block that a node may be lost in."""
    time.sleep(seconds)
    compute_block(block)


@pytest.mark.slow
def test_lost_nodes_of_ray_cost_their_unfinished_rows_alone(tmp_path):
    """Twenty nodes are killed at random instants, each replaced by another."""
    Cluster = pytest.importorskip("ray.cluster_utils").Cluster
    with open_executor("inline") as executor:
        list(run_all(compute_block, blocks(tmp_path / "whole"), executor))

    cluster, instants, losses = Cluster(), random.Random(0), 0
    cluster.add_node(num_cpus=0)  # the head, which is never lost
    node = cluster.add_node(num_cpus=2)
    try:
        with open_executor(f"ray:{cluster.address}") as executor:
            left = blocks(tmp_path / "lost")
            outcomes = run_all(partial(compute_slowly, 1.0), left, executor)
            for _ in outcomes:
                if losses < NUM_LOSSES:
                    time.sleep(instants.uniform(0.0, 1.5))
                    cluster.remove_node(node, allow_graceful=False)
                    node = cluster.add_node(num_cpus=2)
                    losses += 1
    finally:
        cluster.shutdown()

    assert losses == NUM_LOSSES
    assert all(is_done(block) for block in blocks(tmp_path / "lost"))
    assert contents(tmp_path / "lost") == contents(tmp_path / "whole")
    assert not [file for file in Path(tmp_path / "lost").rglob("*.tmp")]

"""A scored folder, which the tests of scores and of the command line share."""

import pytest

from hpenv.benchmark import scoring
from hpenv.benchmark.instances import Suite
from hpenv.benchmark.methods import Method
from hpenv.benchmark.references import Reference
from hpenv.benchmark.rows import blocks_of, compute_block, read_rows
from tests.hpenv.benchmark.tiny_suite import Braking, TwentyTimes, tiny_suite


@pytest.fixture(scope="session")
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

"""The sandbox of a process: one for all, started by the first program, and never copied."""

import multiprocessing
import pickle

import pytest

from hpenv.posttraining.grading import shared_sandbox
from hpenv.posttraining.grading.grader import Grader
from hpenv.posttraining.grading.shared_sandbox import SharedSandbox
from hpenv.posttraining.sandbox import (
    Call,
    Job,
    Limits,
    Result,
    Sandbox,
    SandboxUnavailable,
    kernel,
    syscalls,
)
from tests.tiny_student import TINY, FakeGrader, GRPOConfig, GRPOPlant, advance, few_pairs, student

MISSING = kernel.missing_support(syscalls.NUMBERS)
executes = pytest.mark.skipif(bool(MISSING), reason=f"programs cannot be executed here: {MISSING}")
JOB = Job("def f(x):\n    return x + 1\n", (Call("f", (1,)),))


@pytest.fixture
def started(monkeypatch):
    """The sandboxes that are started.

    Those of other tests are not seen.
    """
    shared_sandbox._sandbox.cache_clear()
    made = []

    def sandbox(**arguments):
        made.append(Sandbox(**arguments))
        return made[-1]

    monkeypatch.setattr(shared_sandbox, "Sandbox", sandbox)
    yield made
    shared_sandbox._sandbox.cache_clear()
    for own in made:
        own.close()


@executes
def test_all_graders_of_a_process_share_one_that_is_started_by_the_first_program(started):
    graders = [Grader(SharedSandbox(2)) for _ in range(2)] + [
        pickle.loads(pickle.dumps(Grader(SharedSandbox(2))))
    ]
    assert started == []
    for grader in graders:
        (outcome,) = grader.sandbox.run_many([JOB])
        assert outcome.returned == (Result(value=2),)
    assert len(started) == 1
    SharedSandbox(1).run_many([JOB])
    assert len(started) == 2


@executes
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # from Python 3.12 on
def test_a_forked_process_starts_its_own(started):
    own = SharedSandbox()
    own.run_many([JOB])
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child():
        theirs.send((own.run_many([JOB])[0].returned[0].value, len(started)))

    process = context.Process(target=child)
    process.start()
    assert ours.poll(60) and ours.recv() == (2, 2)
    process.join()
    assert len(started) == 1 and own.run_many([JOB])[0].returned == (Result(value=2),)


def test_the_processor_time_is_an_argument_and_the_clock_follows_it():
    assert SharedSandbox().limits == Limits(cpu_seconds=1, wall_seconds=10.0)
    assert SharedSandbox(2, cpu_seconds=30).limits == Limits(cpu_seconds=30, wall_seconds=300.0)
    for wrong in (0, 1.5, "1", 3601, True):
        with pytest.raises(
            ValueError, match=f"cpu_seconds must be an integer from 1 to 3600; got {wrong!r}"
        ):
            SharedSandbox(cpu_seconds=wrong)
    with pytest.raises(ValueError, match="num_workers must be an integer of at least 1; got 0"):
        SharedSandbox(0)


def test_the_processor_time_of_a_plant_is_that_of_its_sandbox():
    with few_pairs():
        plant = GRPOPlant(GRPOConfig(**TINY | {"cpu_seconds": 7}), 1, student=student())
    assert plant._grader.limits == Limits(cpu_seconds=7, wall_seconds=70.0)
    with pytest.raises(ValueError, match="cpu_seconds must be an integer from 1 to 3600; got 0"):
        GRPOConfig(cpu_seconds=0)


def test_where_there_is_none_a_plant_is_made_and_says_so_when_it_is_to_run_a_program(monkeypatch):
    def unavailable(**arguments):
        raise SandboxUnavailable("programs cannot be executed safely here; missing: Landlock")

    shared_sandbox._sandbox.cache_clear()
    monkeypatch.setattr(shared_sandbox, "Sandbox", unavailable)
    with few_pairs():
        plant = GRPOPlant(GRPOConfig(**TINY), 1, student=student())
    with pytest.raises(SandboxUnavailable, match="missing: Landlock"):
        advance(plant, 0)
    with few_pairs():
        advance(GRPOPlant(GRPOConfig(**TINY), 1, student=student(), grader=FakeGrader()), 0)
    shared_sandbox._sandbox.cache_clear()

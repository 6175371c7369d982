"""How jobs are brought to an end together with other runs, with an executor that is no process."""

import time

import pytest
from conftest import a_failure, a_run

from armillary.catalog import Method
from armillary.claims import Claims
from armillary.runner import Job, run_all
from armillary.storage import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def job():
    return Job(Method("good", "1.0", "nowhere:good"), "laptop", 0, "cpu")


class Executor:
    """Gives what it is told to; counts how often it is asked."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.asked = 0
        self.stopped = False

    def __call__(self, job, progress):
        self.asked += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def stop(self):
        self.stopped = True


def test_whatever_an_executor_raises_is_that_job_s_failure(store, job):
    execute = Executor(OverflowError("too much"))
    ((_, outcome),) = run_all([job], execute, store)
    assert outcome.reason == "OverflowError: too much"
    assert "Traceback" in outcome.detail
    assert store.failures() == [outcome]
    assert execute.stopped


def test_a_result_that_cannot_be_written_down_is_a_failure(store, job, result):
    result["setting"]["data"] = "half \ud800"
    ((_, outcome),) = run_all([job], Executor(a_run(result)), store)
    assert "surrogates not allowed" in outcome.reason
    assert store.failures() == [outcome]


def elsewhere(store, job, outcome):
    """A progress that, told that another run has the job, lets that run end with this outcome, or with none."""
    claims = Claims(store.folder)
    claims.take(store.claim_path(*job.key))
    told = []

    def progress(_, fraction, message):
        told.append(message)
        if outcome is not None:
            store.save(outcome)
        claims.close()

    return progress, told


def test_a_result_that_another_run_makes_is_taken_from_there(store, job, result):
    execute, made = Executor(None), a_run(result)
    progress, told = elsewhere(store, job, made)
    assert list(run_all([job], execute, store, progress=progress)) == [(job, made)]
    assert execute.asked == 0
    assert "runs it" in told[0]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_failure_that_another_run_meets_is_not_met_again(store, job, fresh):
    store.save(a_failure(reason="an old one"))
    time.sleep(0.01)
    execute, met = Executor(None), a_failure(reason="a new one")
    progress, _ = elsewhere(store, job, met)
    assert list(run_all([job], execute, store, fresh=fresh, progress=progress)) == [(job, met)]
    assert execute.asked == 0


def test_what_another_run_gives_up_is_run_here(store, job, result):
    made = a_run(result)
    execute = Executor(made)
    progress, _ = elsewhere(store, job, None)
    assert list(run_all([job], execute, store, progress=progress)) == [(job, made)]
    assert execute.asked == 1


@pytest.mark.parametrize(("fresh", "asked"), [(False, 0), (True, 1)])
def test_only_a_fresh_run_runs_again_what_is_there(store, job, result, fresh, asked):
    made = a_run(result)
    store.save(made)
    execute = Executor(made)
    assert list(run_all([job], execute, store, fresh=fresh)) == [(job, made)]
    assert execute.asked == asked


def test_a_result_of_another_version_is_not_this_job_s(store, job, result):
    store.save(a_run(result, version="0.9"))
    execute = Executor(a_run(result))
    ((_, outcome),) = run_all([job], execute, store)
    assert (outcome.version, execute.asked) == ("1.0", 1)

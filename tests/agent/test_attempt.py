"""Attempts against a simulated Ollama with gemini-repo-cli (its stand-in): every way through has a name."""

import errno
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from koubou_agent.attempt import AttemptRun, CliRunner, Equipment, ReadingRates
from koubou_agent.blobs import InputsMissing
from koubou_agent.cli_env import CliMissing
from koubou_agent.effects import Failed, Outcome, StartAttempt, Success
from koubou_agent.gateway import Gateway
from koubou_agent.planning import ModelFacts
from koubou_agent.preload import Preloader
from koubou_agent.runner import Runner, RunReport, RunRequest
from koubou_common.errors import ErrorClass
from koubou_common.messages.values import Body, File, Option, WorkerConfig, WorkerLimits
from koubou_simulator.ollama import Fault, FaultKind, SimulatedOllama
from support.agent_play import a_dispatch
from support.waiting import eventually

PLAIN = "qwen2.5-coder:1.5b"
THINKER = "gpt-oss:20b"
LIMITS = WorkerLimits(load_s=10.0, first_token_s=10.0, idle_s=10.0, total_s=20.0)
WORKER = WorkerConfig(
    "lan_001", PLAIN, ("*",), slots=2, options=(Option("seed", 7),), thinking_allowance=64, limits=LIMITS
)


class Workplace:
    """What an attempt needs, real but for Ollama."""

    def __init__(self, sim: SimulatedOllama, runner: Runner) -> None:
        self.sim = sim
        self.gateway = Gateway(sim.url)
        self.gateway.start()
        self.preloader = Preloader(sim.url)
        self.blobs: dict[bytes, bytes] = {}
        self.bytes_per_token = 0.0
        self.missing: set[bytes] = set()
        self.runner: CliRunner | None = runner
        self.fetching = threading.Event()
        self.equipment = Equipment(
            gateway=self.gateway,
            preloader=self.preloader,
            runner=self._runner,
            fetch=self._fetch,
            facts=lambda model: (
                ModelFacts("gptoss", True, "d1", (0, 24, 0))
                if model == THINKER
                else ModelFacts("qwen2", False, "d2", (0, 24, 0))
            ),
            capped=lambda limits: limits,
            rates=ReadingRates(),
        )

    def close(self) -> None:
        self.preloader.stop()
        self.gateway.stop()

    def attempt(
        self,
        prompt: bytes | Body,
        *,
        files: tuple[File, ...] = (),
        model: str = PLAIN,
        target: str = "out.py",
        strict: bool = False,
        timeout_s: float | None = None,
        measured_total_s: float | None = None,
        options: tuple[Option, ...] = (),
        model_options: tuple[Option, ...] = (),
        worker: WorkerConfig = WORKER,
    ) -> AttemptRun:
        dispatch = replace(
            a_dispatch(1),
            prompt=inline(prompt) if isinstance(prompt, bytes) else prompt,
            files=files,
            model=model,
            target=target,
            strict_output=strict,
            timeout_s=timeout_s,
            total_s=measured_total_s,
            options=options,
            model_options=model_options,
            bytes_per_token=self.bytes_per_token,
        )
        return AttemptRun(StartAttempt(dispatch, worker), self.equipment)

    def _runner(self) -> CliRunner:
        if self.runner is None:
            raise CliMissing("gemini-repo-cli is not installed")
        return self.runner

    def _fetch(self, body: Body, cancel: threading.Event) -> bytes | None:
        if body.sha256 in self.missing:
            raise InputsMissing("the broker does not have it")
        if body.sha256 not in self.blobs:  # on its way for ever
            self.fetching.set()
            assert cancel.wait(10)
            return None
        return self.blobs[body.sha256]


class Liar:
    """A gemini-repo-cli that prints something else than the model said."""

    def __init__(self, honest: CliRunner) -> None:
        self._honest = honest

    def run(self, request: RunRequest, cancel: threading.Event) -> RunReport:
        return replace(self._honest.run(request, cancel), stdout=b"something else\n")


class Crowded:
    """A gemini-repo-cli that its folder has no room for."""

    def __init__(self, number: int) -> None:
        self._number = number

    def run(self, request: RunRequest, cancel: threading.Event) -> RunReport:
        raise OSError(self._number, "staged")


def inline(data: bytes) -> Body:
    return Body(hashlib.sha256(data).digest(), len(data), data)


@pytest.fixture(scope="module")
def runner(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    started = Runner(stand_in, tmp_path_factory.mktemp("work"))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def place(runner: Runner) -> Iterator[Workplace]:
    with SimulatedOllama() as sim:
        made = Workplace(sim, runner)
        yield made
        made.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def succeeded(run: AttemptRun) -> tuple[Success, bytes]:
    outcome, raw = run.run()
    assert isinstance(outcome, Success), outcome
    return outcome, raw


def failed(run: AttemptRun) -> Failed:
    outcome, raw = run.run()
    assert isinstance(outcome, Failed), outcome
    assert raw == b""
    return outcome


def test_a_prompt_with_files_becomes_the_models_answer(place: Workplace) -> None:
    content = b"def f(): ...\n" * 10
    place.blobs[hashlib.sha256(content).digest()] = content
    large = Body(hashlib.sha256(content).digest(), len(content))
    run = place.attempt(
        b"Explain [[sim: raw=print(1)]]",
        files=(File("src/a.py", large), File("b.txt", inline(b"hi"))),
        options=(Option("temperature", 0.9), Option("num_ctx", 1)),
    )
    success, raw = succeeded(run)
    assert raw == b"print(1)"
    assert hashlib.sha256(raw).digest() == success.raw.sha256
    assert success.raw.inline is None
    assert (success.output_offset, success.output_length) == (0, len(raw))
    assert (success.model, success.model_digest) == (PLAIN, "d2")
    assert success.metrics.output_tokens > 0
    assert success.metrics.total_ms >= success.metrics.overhead_ms
    asked = [request for request in place.sim.requests if request.prompt][-1]
    assert "src/a.py" in asked.prompt
    assert content.decode() in asked.prompt
    assert asked.options["num_ctx"] == 8192
    assert asked.options["num_predict"] == 4096
    assert asked.options["seed"] == 7
    assert asked.options["temperature"] == 0.9
    assert asked.truncate is False


def test_the_fence_around_a_file_is_not_part_of_the_output(place: Workplace) -> None:
    success, raw = succeeded(place.attempt(b"Write it [[sim: fenced]]"))
    output = raw[success.output_offset : success.output_offset + success.output_length]
    assert raw.startswith(b"```") or b"```" in raw
    assert b"```" not in output
    assert "fence_removed" in success.flags


def test_prose_and_blocks_are_flagged_and_fail_where_the_task_is_strict(place: Workplace) -> None:
    success, _ = succeeded(place.attempt(b"Write it [[sim: blocks]]"))
    assert "chatty" in success.flags
    failure = failed(place.attempt(b"Write it [[sim: blocks]]", strict=True))
    assert failure.error_class is ErrorClass.CHATTY_OUTPUT
    assert failure.metrics.output_tokens > 0


@pytest.mark.parametrize(
    ("prompt", "error_class"),
    [
        (b"[[sim: empty]]", ErrorClass.EMPTY_OUTPUT),
        (b"[[sim: repeat]]", ErrorClass.DEGENERATE),
        (b"[[sim: endless]]", ErrorClass.CUT_OUTPUT),
        (b"[[sim: fault=html]]", ErrorClass.BAD_ANSWER),
        (b"[[sim: fault=redirect]]", ErrorClass.REDIRECTED),
        (b"[[sim: fault=busy]]", ErrorClass.OLLAMA_BUSY),
    ],
)
def test_what_ollama_does_wrong_gets_its_name(place: Workplace, prompt: bytes, error_class: ErrorClass) -> None:
    failure = failed(place.attempt(prompt, options=(Option("num_predict", 300),)))
    assert failure.error_class is error_class
    assert failure.message


def test_a_model_that_is_not_there_is_found_by_the_preload(place: Workplace) -> None:
    failure = failed(place.attempt(b"hello", model="nobody:7b"))
    assert failure.error_class is ErrorClass.MODEL_MISSING


def test_an_ollama_that_is_down_is_unreachable(place: Workplace) -> None:
    place.sim.stop()
    failure = failed(place.attempt(b"hello"))
    assert failure.error_class is ErrorClass.OLLAMA_UNREACHABLE


def test_tokens_thought_away_get_one_more_run_with_twice_the_allowance(place: Workplace) -> None:
    worker = replace(WORKER, options=(Option("num_predict", 40), Option("num_ctx", 4096)))
    run = place.attempt(b"[[sim: think=120, length=10]]", model=THINKER, target="", worker=worker)
    success, _ = succeeded(run)
    asked = [request for request in place.sim.requests if request.prompt]
    assert [request.options["num_predict"] for request in asked] == [40 + 64, 40 + 128]
    assert success.metrics.thinking_tokens >= 100


def test_what_is_thought_away_twice_is_an_empty_output(place: Workplace) -> None:
    worker = replace(WORKER, options=(Option("num_predict", 40), Option("num_ctx", 4096)))
    failure = failed(place.attempt(b"[[sim: think=900, length=10]]", model=THINKER, target="", worker=worker))
    assert failure.error_class is ErrorClass.EMPTY_OUTPUT
    assert failure.metrics.thinking_tokens > 0


def test_an_answer_over_the_limit_is_too_large(place: Workplace) -> None:
    worker = replace(WORKER, limits=replace(LIMITS, output_bytes=100))
    failure = failed(place.attempt(b"[[sim: length=200]]", worker=worker))
    assert failure.error_class is ErrorClass.OUTPUT_TOO_LARGE


def test_the_tasks_timeout_bounds_the_attempt(place: Workplace) -> None:
    failure = failed(place.attempt(b"[[sim: fault=hang]]", timeout_s=0.5))
    assert (failure.error_class, failure.message) == (
        ErrorClass.TIMEOUT,
        "the attempt took longer than 0.5 s, the task's own timeout",
    )


def test_a_limit_that_was_measured_bounds_the_attempt_and_is_named(place: Workplace) -> None:
    failure = failed(place.attempt(b"[[sim: fault=hang]]", measured_total_s=0.5))
    assert (failure.error_class, failure.message) == (
        ErrorClass.TIMEOUT,
        "the attempt took longer than 0.5 s, the limit that follows from its worker's measured speed",
    )


def test_a_models_own_window_is_the_one_that_is_loaded_and_asked_for(place: Workplace) -> None:
    worker = replace(WORKER, options=(Option("num_ctx", 2048), Option("seed", 7)))
    run = place.attempt(b"Write it [[sim: raw=1]]", worker=worker, model_options=(Option("num_ctx", 4096),))
    success, _ = succeeded(run)
    assert success.metrics.num_ctx == 4096
    assert {request.options["num_ctx"] for request in place.sim.requests if request.path == "/api/generate"} == {4096}


def test_the_attempts_clock_starts_when_the_model_is_loaded(place: Workplace) -> None:
    place.sim.faults.add(Fault(FaultKind.SLOW_LOAD, delay_s=1.0))
    success, _ = succeeded(place.attempt(b"Write it [[sim: raw=1]]", timeout_s=1.0))
    assert success.metrics.load_ms >= 1_000
    assert success.metrics.total_ms >= success.metrics.load_ms


def test_a_full_disk_costs_the_task_no_try_and_a_broken_one_does(place: Workplace) -> None:
    place.runner = Crowded(errno.ENOSPC)
    failure = failed(place.attempt(b"hello"))
    assert failure.error_class is ErrorClass.INPUTS_UNAVAILABLE
    assert "the disk of this box is full" in failure.message
    place.runner = Crowded(errno.EIO)
    assert failed(place.attempt(b"hello")).error_class is ErrorClass.AGENT_ERROR


def test_inputs_that_cannot_be_had_have_a_name(place: Workplace) -> None:
    gone = Body(hashlib.sha256(b"gone").digest(), 4)
    place.missing.add(gone.sha256)
    failure = failed(place.attempt(b"hello", files=(File("a.py", gone),)))
    assert failure.error_class is ErrorClass.INPUTS_UNAVAILABLE
    wrong = Body(hashlib.sha256(b"other").digest(), 5, b"hello")
    assert failed(place.attempt(wrong)).error_class is ErrorClass.INPUTS_UNAVAILABLE


def test_a_prompt_that_is_no_text_is_a_bad_request(place: Workplace) -> None:
    assert failed(place.attempt(b"\xff\xfe")).error_class is ErrorClass.BAD_REQUEST


def test_a_name_that_leads_outside_is_a_bad_request(place: Workplace) -> None:
    failure = failed(place.attempt(b"hello", files=(File("../a.py", inline(b"x")),)))
    assert failure.error_class is ErrorClass.BAD_REQUEST


def test_without_gemini_repo_cli_the_failure_says_how_to_get_it(place: Workplace) -> None:
    place.runner = None
    failure = failed(place.attempt(b"hello"))
    assert failure.error_class is ErrorClass.CLI_MISSING
    assert "koubou-agent setup-cli" in failure.message


def test_what_the_cli_prints_must_be_what_the_model_said(place: Workplace) -> None:
    assert place.runner is not None
    place.runner = Liar(place.runner)
    assert failed(place.attempt(b"hello")).error_class is ErrorClass.OUTPUT_MISMATCH


def test_an_abort_while_the_model_answers_ends_the_call_and_wants_no_outcome(
    place: Workplace, pool: ThreadPoolExecutor
) -> None:
    place.sim.faults.add(Fault(FaultKind.STALL, after=3, count=1))
    run = place.attempt(b"hello")
    outcome: Future[tuple[Outcome | None, bytes]] = pool.submit(run.run)
    eventually(lambda: run.progress()[1] > 0, what="tokens come")
    assert run.progress()[0] == "answering"
    assert run.has_call
    run.stop(None, "cancelled")
    assert outcome.result(5) == (None, b"")
    assert not run.has_call
    eventually(lambda: place.gateway.busy == 0, what="Ollama is free")


def test_a_drain_while_inputs_are_fetched_is_handed_back(place: Workplace, pool: ThreadPoolExecutor) -> None:
    run = place.attempt(Body(hashlib.sha256(b"far away").digest(), 8))
    outcome = pool.submit(run.run)
    assert place.fetching.wait(5)
    run.stop(ErrorClass.DRAIN, "handed back")
    ended, _ = outcome.result(5)
    assert isinstance(ended, Failed)
    assert ended.error_class is ErrorClass.DRAIN


def test_an_attempt_stopped_before_it_began_asks_ollama_for_nothing(place: Workplace) -> None:
    run = place.attempt(b"hello")
    run.stop(None, "cancelled")
    assert run.run() == (None, b"")
    assert [request for request in place.sim.requests if request.prompt] == []


def test_a_ratio_that_no_text_has_does_not_cut_the_answer_short(place: Workplace) -> None:
    place.bytes_per_token = 0.07
    succeeded(place.attempt(b"[[sim: length=600]]"))
    assert [request.options["num_predict"] for request in place.sim.requests if request.prompt] == [4096]


def test_the_slowest_recent_reading_decides_the_next_limit() -> None:
    rates = ReadingRates()
    assert rates.tokens_per_s("m") is None
    rates.learn("m", 10, 1)  # too short to say anything
    assert rates.tokens_per_s("m") is None
    rates.learn("m", 1000, 1000)
    rates.learn("m", 1000, 10)  # found in the cache
    assert rates.tokens_per_s("m") == 1000.0


def test_no_folder_of_an_attempt_is_left(place: Workplace, runner: Runner) -> None:
    succeeded(place.attempt(b"hello", files=(File("a.py", inline(b"x")),)))
    assert [path for path in runner._work_dir.iterdir() if path.is_dir()] == []

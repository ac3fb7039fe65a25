"""The agent's own machine: its Ollama behind gateway and probe, and gemini-repo-cli; watched by one thread."""

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from koubou_agent import cli_env, room
from koubou_agent.attempt import AttemptRun, CliRunner, ReadingRates
from koubou_agent.call_plan import parse_version
from koubou_agent.cli_env import CliMissing
from koubou_agent.config import AgentConfig
from koubou_agent.gateway import Gateway
from koubou_agent.planning import ModelFacts, plan_warm_up
from koubou_agent.preload import Preloader
from koubou_agent.probe import Health, Probe
from koubou_agent.runner import Runner
from koubou_common.errors import KoubouError
from koubou_common.messages.values import AgentHealth, ModelSeen, WorkerConfig
from koubou_common.models import normal_model

PROBE_EVERY_S = 5.0  # one look a heartbeat
UNKNOWN = AgentHealth(issue="the agent has just started and not looked at its Ollama yet", can_work=False)

_JOIN_S = 10.0
_WORD_CHARS = 64  # limits of the wire: what Ollama says of itself is not ours to trust
_NAME_CHARS = 255
_SENTENCE_CHARS = 2_000
_MODELS_MOST = 500

_log = logging.getLogger("koubou_agent")


class Box:
    """Started and stopped by the loop; `report` is called from a thread of its own after every look."""

    def __init__(
        self,
        config: AgentConfig,
        report: Callable[[AgentHealth], None],
        give_way: Callable[[int], bool] = lambda _size_bytes: False,
    ) -> None:
        self._config = config
        self._report = report
        self._give_way = give_way  # the cache drops so many bytes
        self._probe = Probe(config.ollama_url)
        self._runner: Runner | None = None
        self._cli_issue = "gemini-repo-cli is not started yet"
        self._facts: dict[str, ModelFacts] = {}
        self._version: tuple[int, ...] = ()
        self._told = UNKNOWN
        self._stopping = threading.Event()
        self._again = threading.Event()  # look now
        self._look = threading.Thread(target=self._watch, name="probe", daemon=True)
        self._warm_up: threading.Thread | None = None
        self.gateway = Gateway(config.ollama_url)
        self.preloader = Preloader(config.ollama_url)
        self.rates = ReadingRates()

    def start(self) -> None:
        """Open the gateway and begin to look."""
        self.gateway.start()
        self._look.start()

    def stop(self) -> None:
        """End everything that belongs to attempts, also those that run."""
        self._stopping.set()
        self._again.set()
        self.preloader.stop()
        self.gateway.stop()
        if self._runner is not None:
            self._runner.stop()
        for thread in (self._look, self._warm_up):
            if thread is not None and thread.is_alive():
                thread.join(_JOIN_S)

    def runner(self) -> CliRunner:
        """gemini-repo-cli, ready to run; CliMissing says why not."""
        if self._runner is None:
            raise CliMissing(self._cli_issue)
        return self._runner

    def facts(self, model: str) -> ModelFacts:
        """What the last look saw of a model."""
        return self._facts.get(normal_model(model), ModelFacts(ollama_version=self._version))

    def doubt(self) -> AgentHealth:
        """An attempt found nothing listening: what is true until the next look, which comes at once."""
        self._again.set()
        issue = f"nothing answers at {self._config.ollama_url}: is Ollama running there?"
        return replace(self._told, ollama_ok=False, issue=issue, can_work=False)

    def warm_up(self, worker: WorkerConfig) -> None:
        """Load the default model before the first task asks for it; once, and as soon as it is seen there."""
        if self._warm_up is not None or not self._config.settings.preload:
            return
        if normal_model(worker.default_model) not in self._facts:
            return
        limits = self._config.settings.limits.capped(worker.limits)
        plan = plan_warm_up(worker, self.facts(worker.default_model), limits)
        self._warm_up = threading.Thread(target=self.preloader.ensure, args=(plan,), name="warm-up", daemon=True)
        self._warm_up.start()

    def releasing(self, runs: Collection[AttemptRun]) -> int:
        """Slots that Ollama still needs for attempts that are over: hung-up calls, loads nobody waits for."""
        calls = max(0, self.gateway.busy - sum(run.has_call for run in runs))
        is_warming_up = self._warm_up is not None and self._warm_up.is_alive()
        is_waited_for = is_warming_up or any(run.is_loading for run in runs)
        return calls + int(self.preloader.loading and not is_waited_for)

    def _watch(self) -> None:
        said = ""
        while not self._stopping.is_set():
            self._again.clear()
            told = self._looked()
            self._told = told
            if told.issue != said:
                said = told.issue
                _log.log(logging.WARNING if said else logging.INFO, "%s", said or "this box can work")
            self._report(told)
            self._again.wait(PROBE_EVERY_S)

    def _looked(self) -> AgentHealth:
        try:
            health = self._probe.check()
            self._remember(health)
            self._start_runner()
        except Exception as error:  # without this thread nobody would ever hear of this box again
            _log.exception("the agent's own fault while it looked at its box")
            return AgentHealth(issue=f"{type(error).__name__}: {error}"[:_SENTENCE_CHARS], can_work=False)
        return agent_health(health, self._cli_issue, self._disk_issue())

    def _disk_issue(self) -> str:
        folders = (self._config.spool_dir, self._config.work_dir)
        issue = room.issue_of(folders)
        if issue and self._give_way(room.LEAST_BYTES):
            issue = room.issue_of(folders)
        return issue

    def _remember(self, health: Health) -> None:
        if not health.ok:
            return
        self._version = parse_version(health.version)
        self._facts = {
            model.name: ModelFacts(
                family=model.family,
                can_think="thinking" in model.capabilities,
                digest=model.digest[:_NAME_CHARS],
                context_length=model.context_length,
                ollama_version=self._version,
            )
            for model in health.models
        }

    def _start_runner(self) -> None:
        if self._runner is not None:
            return
        config = self._config
        try:
            runner = Runner(cli_python(config), config.work_dir)
            runner.start()
        except KoubouError as error:
            self._cli_issue = "; ".join(part for part in (error.message, error.hint) if part)
        except OSError as error:
            self._cli_issue = f"gemini-repo-cli cannot be started: {error}"
        else:
            info = runner.describe()
            _log.info("%s %s runs in %s", info.kind, info.version, info.python)
            self._cli_issue = ""
            self._runner = runner
            if self._stopping.is_set():
                runner.stop()


def cli_python(config: AgentConfig) -> Path:
    """The interpreter that has gemini-repo-cli: the setting's, else where `setup-cli` put it."""
    named = config.settings.cli_python
    return config.home.resolve(named) if named is not None else cli_env.locate(config.home.root)


def agent_health(health: Health, *own_issues: str) -> AgentHealth:
    """What the broker is told."""
    issues = [issue for issue in (health.issue, *own_issues) if issue]
    return AgentHealth(
        ollama_ok=health.ok,
        ollama_version=health.version[:_WORD_CHARS],
        models=tuple(
            ModelSeen(
                name=model.name,
                digest=model.digest[:_NAME_CHARS],
                size_bytes=model.size_bytes,
                family=model.family[:_WORD_CHARS],
                context_length=model.context_length,
                loaded=model.loaded,
                loaded_num_ctx=model.loaded_ctx,
                vram_bytes=model.vram_bytes,
            )
            for model in health.models[:_MODELS_MOST]
            if len(model.name) <= _NAME_CHARS
        ),
        issue="; ".join(issues)[:_SENTENCE_CHARS],
        can_work=health.ok and not any(own_issues),
    )

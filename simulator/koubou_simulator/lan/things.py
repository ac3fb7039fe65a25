"""What a simulated LAN is made of: boxes with their true speeds, jobs with their true sizes."""

from dataclasses import dataclass

# A box of speed 1.0; about a 20B model on a consumer GPU. Speeds scale both rates and the loading.
PROMPT_TOKENS_PER_S = 500.0
OUTPUT_TOKENS_PER_S = 35.0
# What an attempt takes beside Ollama, whatever the speed: its files fetched, gemini-repo-cli forked.
OVERHEAD_S = 0.1
# Slots share the GPU: with n that read or answer at once each is slower by 1 + 0.3 (n - 1). Two together give
# 1.54 times what one gives alone, four 2.1 times: the same assumption that the simulated Ollama makes.
SLOWED_BY = 0.3
BYTES_PER_TOKEN = 4
MODEL, OTHER_MODEL = "gpt-oss:20b", "qwen3:14b"
LOCAL, REMOTE = "local", "remote"


@dataclass(frozen=True, slots=True)
class Absence:
    """A box is away for a while."""

    from_s: float
    until_s: float
    is_crash: bool = False  # it says nothing and loses what it had; else it says goodbye


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """A machine with an agent and an Ollama, as it truly is."""

    box_id: str
    speed: float = 1.0
    location: str = LOCAL
    slots: int = 1
    models: tuple[str, ...] = (MODEL,)
    memory_models: int = 1  # so many are loaded at once: another one displaces the one idle for longest
    load_s: float = 20.0  # of one model at speed 1.0
    factor: float | None = None  # what workers.yaml says; None: the true speed
    starts_loaded: bool = False  # its first model
    jitter: float = 0.0  # every attempt's work is another one: sigma of the lognormal it is multiplied by
    fails_after_s: float = 0.0  # every attempt fails so soon; 0: none does
    absences: tuple[Absence, ...] = ()  # in order, none overlapping another

    @property
    def capacity(self) -> float:
        """Seconds of speed 1.0 it can do in a second, with all slots at work."""
        return self.speed * self.slots / (1.0 + SLOWED_BY * (self.slots - 1))

    @property
    def configured_factor(self) -> float:
        """What the broker is told before it has measured anything."""
        return self.speed if self.factor is None else self.factor


@dataclass(frozen=True, slots=True)
class Job:
    """A task as it truly is; the broker sees its prompt's bytes, never its answer's length."""

    arrives_s: float
    prompt_tokens: int
    output_tokens: int
    model: str = MODEL
    priority: int = 5
    prefix: str = ""  # prompts with equal prefixes begin with the same `prefix_tokens`
    prefix_tokens: int = 0

    @property
    def work_s(self) -> float:
        """Seconds of a box of speed 1.0 that is alone with it and knows nothing of its prompt."""
        return self.prompt_tokens / PROMPT_TOKENS_PER_S + self.output_tokens / OUTPUT_TOKENS_PER_S

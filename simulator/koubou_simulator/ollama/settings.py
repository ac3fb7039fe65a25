"""What a simulated server is: its version's habits, its limits, how fast its machine is."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

INSTANT: Final = float("inf")


class Mode(StrEnum):
    """Which generation of Ollama is imitated."""

    LEGACY = "0.24"
    LLAMA_SERVER = "0.30"


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast a model runs on its machine; all values but those of `slow` are assumptions."""

    load_s: float
    prompt_tokens_per_s: float
    eval_tokens_per_s: float
    # Each further answer at the same time makes every token this much slower: 1 = the machine is shared out evenly.
    contention: float = 0.3
    on_gpu: bool = True


# 7-8B models, 4 bits: a desktop card, a laptop with unified memory, a laptop's processor.
PRESETS: Final[dict[str, Timing]] = {
    "tiny": Timing(load_s=0.0, prompt_tokens_per_s=INSTANT, eval_tokens_per_s=INSTANT),
    "fast": Timing(load_s=0.05, prompt_tokens_per_s=20_000, eval_tokens_per_s=1_000),
    "rtx": Timing(load_s=5.0, prompt_tokens_per_s=2_000, eval_tokens_per_s=60),
    "mac": Timing(load_s=6.0, prompt_tokens_per_s=500, eval_tokens_per_s=35),
    "cpu": Timing(load_s=12.0, prompt_tokens_per_s=45, eval_tokens_per_s=8, contention=1.0, on_gpu=False),
}

# A card that falls back to the processor loses this much (one report: 692 -> 46 and 36.5 -> 14.6 tokens/s).
CPU_FALLBACK_PROMPT: Final = 1 / 15
CPU_FALLBACK_EVAL: Final = 1 / 2.5


@dataclass(frozen=True, slots=True)
class SimSettings:
    """The server's settings; the defaults are Ollama's own where it has them."""

    mode: Mode = Mode.LEGACY
    host: str = "127.0.0.1"
    port: int = 0
    speed: float = 1.0
    num_parallel: int = 1
    max_loaded: int = 3
    max_queue: int = 512
    default_num_ctx: int = 4096
    keep_alive_s: float = 300.0
    version: str = ""
    no_cloud: bool = True
    # Memory for models, 0 = as much as wanted; a model that does not fit beside the others evicts one.
    vram_bytes: int = 0
    # After an unload from a card, its memory comes back this much later.
    vram_recovery_s: float = 0.0
    # A second load of the same file reads the page cache: this share of the first (assumed).
    warm_load_share: float = 0.3
    # A request with keep_alive saves a model that is being evicted from its eviction (ollama issue 17408).
    bug_17408: bool = True

    @property
    def shown_version(self) -> str:
        return self.version or {Mode.LEGACY: "0.24.0", Mode.LLAMA_SERVER: "0.30.0"}[self.mode]

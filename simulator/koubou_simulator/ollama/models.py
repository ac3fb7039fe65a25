"""The models a simulated server offers: the recorded tiny ones, well-known text models, any other name."""

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from .chains import CHAINS
from .engine import Engine
from .settings import PRESETS, Timing
from .texts import TextModel


class Thinking(StrEnum):
    NEVER = "never"
    OPTIONAL = "optional"
    ALWAYS = "always"  # takes low, medium, high; "do not" is not honoured


@dataclass(frozen=True, slots=True)
class SimModel:
    """One entry of the catalogue, with its memory, its speed and its engine."""

    name: str
    engine: Engine
    family: str
    timing: Timing
    parameter_size: str
    quantization: str
    file_bytes: int
    load_bytes: int  # memory without a window
    bytes_per_context_token: int
    train_ctx: int = 32768
    thinks: Thinking = Thinking.NEVER
    inserts: bool = False
    reads_system_text: bool = True
    broken: bool = False
    digest: str = ""
    blob: str = ""  # also the order of eviction among equals
    modified_at: str = "2026-01-02T03:04:05.123456789Z"

    @property
    def capabilities(self) -> list[str]:
        given = ["completion"]
        if self.inserts:
            given.append("insert")
        if self.thinks is not Thinking.NEVER:
            given.append("thinking")
        return given

    def memory_bytes(self, num_ctx: int) -> int:
        return self.load_bytes + num_ctx * self.bytes_per_context_token

    @property
    def is_recorded(self) -> bool:
        return self.name.removesuffix(":latest") in CHAINS


def normal_name(name: str) -> str:
    """`x` and `x:latest` are one model."""
    last = name.rpartition("/")[2]
    return name if ":" in last else f"{name}:latest"


def is_cloud_name(name: str) -> bool:
    return name.endswith(("-cloud", ":cloud"))


def model_named(name: str, preset: str = "rtx") -> SimModel:
    """A model by its name: recorded, known, or made up after its name. ValueError for an unknown preset."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: one of {', '.join(PRESETS)}")
    bare = name.removesuffix(":latest")
    if bare in CHAINS:
        return next(model for model in tiny_models() if model.name == f"{bare}:latest")
    known = next((model for model in _KNOWN if model.name == bare), None)
    if known is None:
        beginning = bare.partition(":")[0]
        like = next((model for model in _KNOWN if beginning.startswith(model.name.partition(":")[0])), _KNOWN[-1])
        known = replace(like, name=normal_name(name))
    return _identified(replace(known, timing=PRESETS[preset]))


def text_models(preset: str = "rtx") -> list[SimModel]:
    return [model_named(model.name, preset) for model in _KNOWN]


def tiny_models() -> list[SimModel]:
    """The models of the recordings, as fast as they were there."""
    return [_tiny(name, blob, digest) for name, (blob, digest) in _RECORDED.items()]


# A blob's digest decides who is evicted among equals. Two are as recorded, the others keep the recorded order;
# `digest` is what /api/tags showed.
_RECORDED: Final = {
    "slow": ("9a", "5741d2a459c99c4f0fae926432d885dc64c599736fc43c0dcd5f91fa2ac7b743"),
    "stop": (
        "7bf462eec69e48cd33bc5f08de2884c531a70a0356867e5ddc739423766166d4",
        "9cde04c68846b72b398e78ced42b1d7477e5805affe85f985906f43d006f5154",
    ),
    "utf8": ("e8", "dd0c628130b821c9262f029581bacdc6ea345608825e92229f5513f7ef37d470"),
    "endless": ("8e", "ffc200ebddf12155a64e8ab2f7d5ea31d993ee845817eaf037663f7e87e85a8f"),
    "mute": ("1d", "54a99314995ae5327dac5152cedc10fe2ac46a3dd63d3859098a8058c348068d"),
    "repeat": ("0b", "9246b1e225787acc9dec69d4b017ae5e42fda338ddfc1eed889d0054e2599d04"),
    "badbytes": ("d5", "7ec804d3dd41fba9b4f4906e3ba982c2878e8efe187b60478a1e861a25cf4632"),
    "broken": (
        "cc33ce13b8bae1ebe5ea621cbba8bac96230d1590ae34048986c64fb59cbef4a",
        "b3eaa704a7798f68b9b7db98035661fd888661d967e259a6a37a281ee6517844",
    ),
}
_TINY_TIMING: Final = Timing(
    load_s=0.28, prompt_tokens_per_s=5_000, eval_tokens_per_s=1_500, contention=1.0, on_gpu=False
)
_SLOW_TIMING: Final = Timing(load_s=1.9, prompt_tokens_per_s=15, eval_tokens_per_s=14.5, contention=1.0, on_gpu=False)


def _tiny(name: str, blob: str, digest: str) -> SimModel:
    slow = name == "slow"
    return SimModel(
        name=f"{name}:latest",
        engine=CHAINS[name],
        family="llama",
        timing=_SLOW_TIMING if slow else _TINY_TIMING,
        parameter_size="201.88M" if slow else "537K",
        quantization="unknown",
        file_bytes={"slow": 807543972, "broken": 2154913}.get(name, 2156097),
        load_bytes=806469632 if slow else 1850112,
        bytes_per_context_token=49152 if slow else 1152,
        reads_system_text=False,  # their template is the bare prompt
        broken=name == "broken",
        digest=digest,
        blob=blob.ljust(64, "0"),
        modified_at="2026-11-22T14:45:53.956352819Z",
    )


def _text(
    name: str,
    family: str,
    *,
    size: tuple[str, str, int],
    bytes_per_token: int,
    train_ctx: int,
    thinks: Thinking = Thinking.NEVER,
    inserts: bool = False,
) -> SimModel:
    parameters, quantization, file_bytes = size
    return SimModel(
        name=name,
        engine=TextModel(),
        family=family,
        timing=PRESETS["rtx"],
        parameter_size=parameters,
        quantization=quantization,
        file_bytes=file_bytes,
        load_bytes=file_bytes + 400_000_000,
        bytes_per_context_token=bytes_per_token,
        train_ctx=train_ctx,
        thinks=thinks,
        inserts=inserts,
    )


# Sizes as their public pages show them; the memory of a window is assumed. The last is the pattern for other names.
_KNOWN: Final = (
    _text(
        "gpt-oss:20b",
        "gptoss",
        size=("20.9B", "MXFP4", 13_793_441_244),
        bytes_per_token=49_152,
        train_ctx=131_072,
        thinks=Thinking.ALWAYS,
    ),
    _text(
        "qwen3:8b",
        "qwen3",
        size=("8.2B", "Q4_K_M", 5_225_388_164),
        bytes_per_token=147_456,
        train_ctx=40_960,
        thinks=Thinking.OPTIONAL,
    ),
    _text(
        "qwen2.5-coder:1.5b",
        "qwen2",
        size=("1.5B", "Q4_K_M", 986_062_089),
        bytes_per_token=28_672,
        train_ctx=32_768,
        inserts=True,
    ),
    _text(
        "llama3.2:3b",
        "llama",
        size=("3.2B", "Q4_K_M", 2_019_393_189),
        bytes_per_token=114_688,
        train_ctx=131_072,
    ),
)


def _identified(model: SimModel) -> SimModel:
    return replace(
        model,
        digest=hashlib.sha256(f"simulated manifest of {model.name}".encode()).hexdigest(),
        blob=hashlib.sha256(f"simulated weights of {model.name}".encode()).hexdigest(),
    )

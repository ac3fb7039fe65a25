"""What happens to a prompt that is longer than the window."""

from .errors import TOO_LONG, Refusal
from .gojson import encode
from .settings import Mode


def fitted(tokens: list[int], *, num_ctx: int, num_keep: int, truncate: bool, shift: bool, mode: Mode) -> list[int]:
    """The tokens that are read: all, or head and tail with the middle gone. Raises Refusal where that is not wanted."""
    if mode is Mode.LEGACY:
        if len(tokens) <= num_ctx:
            return tokens
        if not truncate:
            raise Refusal(400, TOO_LONG, late=True)
        keep = min(len(tokens) if num_keep < 0 else num_keep, num_ctx - 1)
        return tokens[:keep] + tokens[len(tokens) - (num_ctx - keep) :]
    # llama-server wants room for one token of the answer.
    if len(tokens) < num_ctx:
        return tokens
    if not truncate:
        raise Refusal(400, _llama_server_text(len(tokens), num_ctx), late=True)
    if not shift:
        raise Refusal(400, _NO_SHIFT, late=True)
    keep = min(len(tokens) if num_keep < 0 else num_keep, num_ctx - 1)
    limit = num_ctx - max((num_ctx - keep) // 2, 1)
    return tokens[:keep] + tokens[len(tokens) - (limit - keep) :]


_NO_SHIFT = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "adjust the context length in settings, or use a model with a longer context length"
)


def _llama_server_text(tokens: int, num_ctx: int) -> str:
    """llama-server's own body, which Ollama passes on as text."""
    message = f"request ({tokens} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it"
    detail = {
        "code": 400,
        "message": message,
        "type": "exceed_context_size_error",
        "n_prompt_tokens": tokens,
        "n_ctx": num_ctx,
    }
    return encode({"error": detail}).decode()

"""The chat format of the paper, and which of its tokens a supervised loss counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tulu3._checks import IGNORE_INDEX, checked_count

Message = Mapping[str, Any]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not (loop.last and message['role'] == 'assistant') %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""The paper's chat format, as a template for `tokenizer.chat_template`."""


def render_chat(messages: Sequence[Message], eos_token: str, *, add_generation_prompt: bool = False) -> str:
    r"""Write a conversation in the paper's chat format, without a template engine.

    Every turn is `<|role|>`, a line break, its content; an assistant's ends with the end token, and all but a
    last assistant turn with a line break (arXiv 2411.15124, section 4.3).

    Args:
        messages: Turns with `role` and `content`.
        eos_token: What ends an assistant's turn.
        add_generation_prompt: Whether to end with the opening of an assistant's turn.

    Returns:
        The text.

    Raises:
        ValueError: If a turn lacks a role or its content is not text.

    Examples:
        >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        >>> render_chat(turns, "</s>")
        '<|user|>\nHi\n<|assistant|>\nHello</s>'
    """
    _check(messages)
    text = ""
    for index, message in enumerate(messages):
        assistant = message["role"] == "assistant"
        text += f"<|{message['role']}|>\n{message['content']}{eos_token if assistant else ''}"
        text += "" if assistant and index == len(messages) - 1 else "\n"
    return text + ("<|assistant|>\n" if add_generation_prompt else "")


class ChatTokens(NamedTuple):
    """A tokenised conversation.

    Attributes:
        input_ids: (T,) token ids.
        mask: (T,) True on the tokens of assistants' turns, their end tokens too.
    """

    input_ids: Tensor
    mask: Tensor

    @property
    def labels(self) -> Tensor:
        """(T,) the token ids where the mask is true, -100 elsewhere."""
        return self.input_ids.masked_fill(~self.mask, IGNORE_INDEX)


def assistant_mask(
    messages: Sequence[Message], tokenizer: Any, *, max_length: int | None = None
) -> ChatTokens:
    """Tokenise a conversation and mark what the assistant says: the only tokens the loss counts.

    The conversation is tokenised once, as a whole, and tokens are found by their place in the text, so that
    merges across the border of two turns cannot shift the mask. The chat template is the tokenizer's own; one
    without a template gets the paper's.

    Args:
        messages: Turns with `role` and `content`, at least one an assistant's, none of these first.
        tokenizer: A fast tokenizer of transformers (extra `hf`).
        max_length: Number of tokens to keep from the start; None keeps all.

    Returns:
        `ChatTokens`.

    Raises:
        ValueError: If no turn or the first turn is an assistant's, a turn lacks a role or its content is not
            text, or the template writes earlier turns differently once later ones follow.
        TypeError: If the tokenizer cannot tell where in the text its tokens stand.
    """
    _check(messages)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError(
            "messages must have an assistant turn, got roles " + str([m["role"] for m in messages])
        )
    if turns[0] == 0:
        raise ValueError(
            "messages must have a turn before the first assistant turn, got an assistant turn first"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"tokenizer must be a fast one, with offsets, got {type(tokenizer).__name__}")
    if max_length is not None:
        checked_count("max_length", max_length)
    text = _render(messages, tokenizer)
    spans = [_span(messages, index, text, tokenizer) for index in turns]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = torch.tensor([start for start, _ in encoded["offset_mapping"]], dtype=torch.long)
    bounds = torch.tensor(spans)
    mask = ((starts[:, None] >= bounds[:, 0]) & (starts[:, None] < bounds[:, 1])).any(1)
    return ChatTokens(torch.tensor(encoded["input_ids"], dtype=torch.long)[:max_length], mask[:max_length])


def _render(messages: Sequence[Message], tokenizer: Any, *, opened: bool = False) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        if tokenizer.eos_token is None:
            raise ValueError("tokenizer must have an eos_token, got None")
        return render_chat(messages, tokenizer.eos_token, add_generation_prompt=opened)
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opened))


def _span(messages: Sequence[Message], index: int, text: str, tokenizer: Any) -> tuple[int, int]:
    before = _render(messages[:index], tokenizer, opened=True)
    through = _render(messages[: index + 1], tokenizer)
    if not (through.startswith(before) and text.startswith(through)):
        raise ValueError(
            f"tokenizer's chat template must write turn {index} alike whatever follows it, and open it as "
            "add_generation_prompt does; it does not, so that the turn's tokens cannot be told"
        )
    return len(before), len(through)


def _check(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{index}] must have a 'role', got {message!r}")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"messages[{index}]['content'] must be text, got {message.get('content')!r}")

"""A small character model, and sampling from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tulu3.demo.sums import PAD, STOP, VOCABULARY

_EMBEDDING = 16


class CharacterModel(nn.Module):
    """A neural language model over a window of all characters so far: logits (B, T, V), or values (B, T, 1).

    Every place of the window has weights of its own (Bengio et al. 2003), so that sums are learned in seconds.

    Args:
        size: Width of the two hidden layers.
        max_length: Places of the window: no text is longer.
        num_outputs: Size of the vocabulary, or 1 for a value network.
    """

    def __init__(self, size: int, max_length: int, num_outputs: int = VOCABULARY) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, _EMBEDDING)
        self.place = nn.Embedding(max_length, size)
        self.first, self.second = nn.Linear(max_length * _EMBEDDING, size), nn.Linear(size, size)
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, num_outputs, bias=False)
        self.causal: Tensor
        causal = torch.ones(max_length, max_length).tril()[:, :, None]
        self.register_buffer("causal", causal, persistent=False)

    @property
    def max_length(self) -> int:
        """Places of the window."""
        return self.place.num_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        """What is said after each of the ids (B, T)."""
        length = ids.shape[1]
        seen = self._window(ids)[:, None] * self.causal[:length]
        return self._read(seen.flatten(2), self.place.weight[:length])

    def last(self, ids: Tensor) -> Tensor:
        """What is said after all of the ids (B, T): (B, V)."""
        seen = self._window(ids) * self.causal[ids.shape[1] - 1]
        return self._read(seen.flatten(1), self.place.weight[ids.shape[1] - 1])

    def _window(self, ids: Tensor) -> Tensor:
        return nn.functional.pad(self.embed(ids), (0, 0, 0, self.max_length - ids.shape[1]))

    def _read(self, seen: Tensor, place: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.first(seen) + place)
        hidden = hidden + nn.functional.gelu(self.second(hidden))
        return self.head(self.norm(hidden))


def value_network(policy: CharacterModel) -> CharacterModel:
    """A value network that starts from a policy's body, with a head of zeros."""
    network = CharacterModel(policy.second.in_features, policy.max_length, 1).to(policy.head.weight.device)
    network.load_state_dict({**policy.state_dict(), "head.weight": torch.zeros_like(network.head.weight)})
    return network


@torch.no_grad()
def sample(
    policy: CharacterModel,
    prompts: Tensor,
    num_tokens: int,
    generator: torch.Generator,
    *,
    greedy: bool = False,
) -> Tensor:
    """Responses (B, num_tokens) to prompts (B, P) of one length; padding follows a stop token."""
    ids = prompts
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    for _ in range(num_tokens):
        logits = policy.last(ids)
        logits[:, PAD] = -torch.inf
        if greedy:
            drawn = logits.argmax(-1)
        else:
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        drawn = drawn.masked_fill(ended, PAD)
        ended = ended | (drawn == STOP)
        ids = torch.cat([ids, drawn[:, None]], 1)
    return ids[:, prompts.shape[1] :]

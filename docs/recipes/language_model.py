"""The Python manual, and a lower-case style taught to a quarter of the model."""

import dataclasses
import functools
import math
from pydoc_data.topics import topics

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from armillary.recipes.language_model import sort_then_steer
from emulatedft import eft_logprobs
from sortedft import compute_sorted_loss

DEPTH, NUM_LAYERS, CONTEXT = 2, 8, 64
WEIGHTS = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]


def figure():
    """Bits per character of held-out text in the style, for every weight of the style."""
    corpus = "\n\n".join(topics[name] for name in sorted(topics))
    alphabet = {character: index for index, character in enumerate(sorted(set(corpus + corpus.lower())))}
    held_out, train = corpus[: len(corpus) // 10], corpus[len(corpus) // 10 :]

    def windows(text, count, seed, batch=16):
        ids = torch.tensor([alphabet[character] for character in text])
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            starts = torch.randint(len(ids) - CONTEXT, (batch, 1), generator=generator)
            window = ids[starts + torch.arange(CONTEXT)]
            yield {"input_ids": window, "labels": window}

    def bits(steered, weight):
        """Held-out text in the style, under the full model steered with some weight."""
        (batch,) = windows(held_out.lower(), 1, seed=2, batch=128)
        delta = dataclasses.replace(steered.delta, weight=weight)
        log_probs = eft_logprobs(steered.base, delta, batch["input_ids"])
        return -log_probs[:, 1:].mean().item() / math.log(2)

    def only_full(model, batch, exits):
        return compute_sorted_loss(model, batch, exits=exits[-1:])

    series = {}
    for name, loss in {"sorted fine-tuning": compute_sorted_loss, "ordinary fine-tuning": only_full}.items():
        torch.manual_seed(0)
        sizes = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(alphabet), num_hidden_layers=NUM_LAYERS, **sizes))
        steered = sort_then_steer(
            model,
            windows(train, 800, seed=0),
            windows(train.lower(), 200, seed=1),
            depth=DEPTH,
            optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
            compute_loss=loss,
        )
        series[name] = {"x": WEIGHTS, "y": [bits(steered, weight) for weight in WEIGHTS]}
    return {
        "curves": [
            {
                "title": "Full model steered by its tuned shallow sub-model",
                "x_label": "weight of the style",
                "y_label": "bits per character, lower-case text",
                "series": series,
            }
        ]
    }

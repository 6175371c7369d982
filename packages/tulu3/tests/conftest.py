import os

import pytest
from hypothesis import settings

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 15
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


def make_tokenizer():
    """A fast tokenizer of words and signs, made from nothing, with the paper's chat template."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    from tulu3 import CHAT_TEMPLATE

    words = ["<pad>", "</s>", "<unk>", "<|", "|>", "system", "user", "assistant", "\n", " "]
    words += [*"0123456789+=.?", "What", "is", "It", "yes", "no", "Be", "brief", "Hi"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\||\|>|[A-Za-z]+|[^A-Za-z]"), "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def symbolic():
    """One verifier for all tests: every process of sympy costs seconds."""
    pytest.importorskip("sympy")
    from tulu3 import MathVerifier

    return MathVerifier(timeout=60)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()

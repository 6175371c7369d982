"""The paper's small transformer for few-shot sequences, with every activation named."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inductionclamp._checks import checked_integer
from inductionclamp.attention import ATTENTION_NAMES, ClampableAttention, lecun_normal
from inductionclamp.sites import Site, SiteTable

BLOCK_NAMES = ("x", "norm_inp", *ATTENTION_NAMES, "attn_out", "residual_post_attn", "mlp", "out")


def block_names(layer: int, with_mlp: bool) -> list[str]:
    """Return the names of one block's activations."""
    return [f"blocks.{layer}.{name}" for name in BLOCK_NAMES if with_mlp or name != "mlp"]


class ClampableBlock(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then + mlp(norm(.)) if it has one.

    Args:
        dim: Width of the tokens.
        heads: Number of heads.
        mlp_dim: Hidden width of the MLP; None leaves it out.
        sites: The block's sites by name.
        generator: Draws the weights.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int | None,
        sites: Mapping[str, Site],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = ClampableAttention(dim, heads, generator=generator, sites=sites)
        self.mlp: nn.Sequential | None = None
        if mlp_dim is not None:
            self.mlp_norm = nn.LayerNorm(dim)
            layers = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim)
            self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1])
            for layer in layers:
                lecun_normal(layer.weight, generator)
                nn.init.zeros_(layer.bias)
        self.sites = dict(sites)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, T, dim] to tokens [B, T, dim]."""
        x = self.sites["x"](x)
        return self.finish(x, self.attention.mix(self.sites["norm_inp"](self.norm(x))))

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Return the block's output of its input and its heads' mixed values."""
        sites = self.sites
        x = sites["residual_post_attn"](x + sites["attn_out"](self.attention.project(mixed)))
        if self.mlp is not None:
            x = x + sites["mlp"](self.mlp(self.mlp_norm(x)))
        return sites["out"](x)


class FewShotTransformer(nn.Module):
    """The paper's model: exemplars and labels interleaved, attention-only blocks, logits at every position.

    Tokens are exemplar, label, ..., exemplar, label, query. Exemplars pass through a linear embedding, labels
    through a table; blocks are pre-norm with rotary positions and no biases; a final norm and a linear layer follow
    (Singh et al. 2024, section 3).

    Args:
        num_features: Width of an exemplar's features.
        num_labels: Number of labels.
        dim: Width of the tokens.
        num_layers: Number of blocks.
        num_heads: Heads of each block.
        mlp_dim: Hidden width of MLPs; None, as in the paper, has none.
        generator: Draws the weights.

    Raises:
        ValueError: If a size is not positive or does not fit.

    Examples:
        >>> import torch
        >>> from inductionclamp import FewShotTransformer
        >>> model = FewShotTransformer(num_features=512, num_labels=5)
        >>> x, y = torch.randn(4, 3, 512), torch.randint(5, (4, 3))
        >>> model(x, y).shape  # five tokens: the last one is the query
        torch.Size([4, 5, 5])
    """

    def __init__(
        self,
        num_features: int,
        num_labels: int,
        dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 8,
        mlp_dim: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers = range(checked_integer("num_layers", num_layers, 1))
        self.num_features = checked_integer("num_features", num_features, 1)
        self.num_labels = checked_integer("num_labels", num_labels, 2)
        names = ["example_embedding", "label_embedding", "tok_embedding"]
        for layer in layers:
            names += block_names(layer, mlp_dim is not None)
        self.clamp_sites = SiteTable([*names, "pre_unembed", "logits"])
        self.embed = nn.Linear(num_features, dim)
        self.label_embed = nn.Embedding(num_labels, dim)
        self.blocks = nn.ModuleList(
            ClampableBlock(dim, num_heads, mlp_dim, self.clamp_sites.scope(f"blocks.{layer}."), generator)
            for layer in layers
        )
        self.norm = nn.LayerNorm(dim)
        self.unembed = nn.Linear(dim, num_labels)
        for linear in (self.embed, self.unembed):
            lecun_normal(linear.weight, generator)
            nn.init.zeros_(linear.bias)
        nn.init.trunc_normal_(self.label_embed.weight, std=0.02, a=-0.04, b=0.04, generator=generator)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predict labels.

        Args:
            x: Exemplars [B, n + 1, num_features], the last one the query.
            y: Their labels [B, n + 1] or [B, n]; the query's own is not read.

        Returns:
            Logits [B, 2 n + 1, num_labels]; the query's are the last.

        Raises:
            ValueError: If the shapes do not fit each other.
        """
        if x.dim() != 3 or y.dim() != 2 or x.shape[0] != y.shape[0] or x.shape[1] - y.shape[1] not in (0, 1):
            raise ValueError(
                "x must be [B, n + 1, F] and y [B, n + 1] or [B, n], "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        return self.read_out(self.embed_tokens(x, y))

    def embed_tokens(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the interleaved tokens [B, 2 n + 1, dim]."""
        sites = self.clamp_sites
        pairs = x.shape[1] - 1
        examples = sites["example_embedding"](self.embed(x))
        labels = sites["label_embedding"](self.label_embed(y[:, :pairs]))
        interleaved = torch.stack([examples[:, :pairs], labels.to(examples.dtype)], 2).flatten(1, 2)
        return sites["tok_embedding"](torch.cat([interleaved, examples[:, pairs:]], 1))

    def read_out(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Return the logits of tokens [B, T, dim] that enter block `first`."""
        for block in self.blocks[first:]:
            tokens = block(tokens)
        sites = self.clamp_sites
        return sites["logits"](self.unembed(sites["pre_unembed"](self.norm(tokens))))

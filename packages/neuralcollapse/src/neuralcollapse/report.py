"""What the meter tells of a layer."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from neuralcollapse.metrics import cdnv, class_cdnv, nc1, nc2, nc3, norm_variation
from neuralcollapse.statistics import Stats


@dataclass(frozen=True)
class NCReport:
    """The collapse of one layer.

    Attributes:
        nc1: `(1/K) Tr(Sigma_W Sigma_B^+)`; `None` with `cov="trace"` after a single pass, or where a class has one
            sample only.
        nc1_trace: `Tr(Sigma_W) / Tr(Sigma_B)`; `None` where a class has one sample only.
        nc2: Distance of the centred means from a simplex frame.
        nc2_orthogonal: Distance of the means from an orthogonal frame.
        nc3: Alignment of the head with the means; for the head's input alone.
        nc3_self_duality: Squared distance of head and means, both at unit norm; for the head's input alone.
        nc4: Disagreement of the network with the nearest class mean; after two passes alone.
        cdnv: Class-distance normalised variance.
        norm_variation: How unequal the norms of the centred means are, their deviation over their mean.
        head_norm_variation: The same of the head's rows; for the head's input alone.
        stats: The statistics these are functions of.
        disagreements: Samples of each class on which the network and the nearest class mean disagree `[K]`; after
            two passes alone.
    """

    nc1: float | None
    nc1_trace: float | None
    nc2: float
    nc2_orthogonal: float
    nc3: float | None
    nc3_self_duality: float | None
    nc4: float | None
    cdnv: float
    norm_variation: float
    head_norm_variation: float | None
    stats: Stats
    disagreements: Tensor | None = None

    def to_dict(self) -> dict[str, float | None]:
        """The metrics by name, as a row of a table or of a log.

        Returns:
            The same names always; `None` where one was not measured.

        Examples:
            >>> import torch
            >>> from neuralcollapse import NCMeter
            >>> meter = NCMeter(torch.nn.Sequential(torch.nn.Identity()), ["0"], num_classes=2)
            >>> report = meter.run([(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1]))])["0"]
            >>> report.to_dict()["nc1"]
            0.0
        """
        kept = [field.name for field in fields(self) if field.name not in ("stats", "disagreements")]
        return {name: getattr(self, name) for name in kept}

    def per_class(self) -> list[dict[str, float | int | None]]:
        """What each class has to do with it.

        Returns:
            A row for each class: its label (`class`), its samples (`count`), the norm of its centred mean (`norm`),
            and its share of the metrics, `nc1_trace` and `cdnv`, whose means over classes are those of the layer,
            and `nc4`, whose mean over samples is. `None` where one was not measured, and as the `nc1_trace` of a
            single sample.
        """
        stats = self.stats
        between = stats.centred_mean.square().sum(1)
        share = (stats.within_trace / between.mean()).tolist()
        wrong = [None] * len(share)
        if self.disagreements is not None:
            wrong = (self.disagreements / stats.count).tolist()
        columns = {
            "class": stats.classes.tolist(),
            "count": stats.count.tolist(),
            "norm": between.sqrt().tolist(),
            "nc1_trace": [
                one if size > 1 else None for one, size in zip(share, stats.count.tolist(), strict=True)
            ],
            "cdnv": class_cdnv(stats).tolist(),
            "nc4": wrong,
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def report_of(stats: Stats, weight: Tensor | None, disagreements: Tensor | None) -> NCReport:
    """All metrics of one layer; those of the head where its weight is given."""
    has_within = stats.within_cov is not None or stats.within_gram is not None
    has_pairs = int(stats.count.min()) >= 2
    wrong = None if disagreements is None else int(disagreements.sum()) / int(stats.count.sum())
    return NCReport(
        nc1=float(nc1(stats)) if has_within and has_pairs else None,
        nc1_trace=float(nc1(stats, "trace")) if has_pairs else None,
        nc2=float(nc2(stats)),
        nc2_orthogonal=float(nc2(stats, "orthogonal")),
        nc3=None if weight is None else float(nc3(stats, weight)),
        nc3_self_duality=None if weight is None else float(nc3(stats, weight, "papyan")),
        nc4=wrong,
        cdnv=float(cdnv(stats)),
        norm_variation=float(norm_variation(stats)),
        head_norm_variation=None if weight is None else float(norm_variation(stats, weight)),
        stats=stats,
        disagreements=disagreements,
    )

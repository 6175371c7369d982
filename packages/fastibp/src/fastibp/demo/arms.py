"""The ways of training that are compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """A way of training, and its place in the comparison."""

    name: str
    role: str
    batch_norm: bool
    ibp_init: bool
    regularise: bool
    longer: int = 1
    tuned_as: str = ""  # whose learning rate it has, if not its own


PLAIN = Arm("IBP", "baseline", batch_norm=False, ibp_init=False, regularise=False)
NORM = Arm("IBP + BN", "baseline", batch_norm=True, ibp_init=False, regularise=False)
NORM_INIT = Arm("IBP + BN + init", "ablation", batch_norm=True, ibp_init=True, regularise=False)
FULL = Arm("Fast IBP: BN + init + regularisers", "method", batch_norm=True, ibp_init=True, regularise=True)
NO_NORM = Arm("init + regularisers, no BN", "ablation", batch_norm=False, ibp_init=True, regularise=True)
ARMS = (PLAIN, NORM, NORM_INIT, FULL, NO_NORM)
EASY_ARMS = (PLAIN, NORM, FULL)
SWEPT = (NORM, FULL)


def longer(best: Arm, times: int) -> Arm:
    """The better of the baselines once more, with a longer warm-up; one name whichever it is."""
    name = f"the better of IBP and IBP + BN, warm-up {times}x"
    return Arm(name, "reference", best.batch_norm, best.ibp_init, best.regularise, times, best.name)

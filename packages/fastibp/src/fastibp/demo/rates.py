"""Learning rates of Adam, tuned for each arm on seeds 100 and 101, which are none of the evidence.

Grids of factors of two, widened until the best is inside: 1e-3 to 1.6e-2 in the hard setting, 1e-3 to 3.2e-2 in the
easy one and in the short runs of the sweeps (with 1,000 images, at radius 0.3 and warm-up 4); the mean verified
error decides. Without BatchNorm the recipe ends as a constant classifier at every rate from 2.5e-4 to 8e-3.
"""

from __future__ import annotations

from fastibp.demo.arms import FULL, NO_NORM, NORM, NORM_INIT, PLAIN

HARD = {PLAIN.name: 4e-3, NORM.name: 4e-3, NORM_INIT.name: 4e-3, FULL.name: 4e-3, NO_NORM.name: 1e-3}
EASY = {PLAIN.name: 8e-3, NORM.name: 8e-3, FULL.name: 8e-3}
SHORT = {NORM.name: 1.6e-2, FULL.name: 1.6e-2}

"""A plain agent, two environments and a learned model around the method, so that its evidence needs no other code."""

from ravl.reference.dynamics import GaussianEnsemble
from ravl.reference.environments import Pendulum, Void
from ravl.reference.grouped import GroupedSAC, GroupedTransitions

__all__ = ["GaussianEnsemble", "GroupedSAC", "GroupedTransitions", "Pendulum", "Void"]

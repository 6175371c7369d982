"""A reference learner and its environment, so that the method can be tried with no other code.

Everything carries a leading axis of G independent learners (arms or seeds) that one optimizer step trains together.
"""

from rlif.reference.buffer import GroupedBuffer
from rlif.reference.cloning import GroupedCloning
from rlif.reference.networks import GroupedMLP, SquashedActor
from rlif.reference.pendulum import BatchedPendulum
from rlif.reference.sac import GroupedSAC

__all__ = ["BatchedPendulum", "GroupedBuffer", "GroupedCloning", "GroupedMLP", "GroupedSAC", "SquashedActor"]

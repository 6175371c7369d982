"""A compact soft actor-critic that trains many agents at once, and two environments with adjustable physics.

What the evidence runs on, so that it needs no other code; also a small agent to read. Not the method: that is one
level up.
"""

from h2orl.reference.agents import GroupedSAC, Settings
from h2orl.reference.physics import CartPole, Pendulum

__all__ = ["CartPole", "GroupedSAC", "Pendulum", "Settings"]

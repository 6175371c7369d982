"""What the evidence runs on: an ensemble, an agent, and the loop that joins them.

None of it is needed to use the method; it is here so that the evidence needs no other code, and so that
a reader sees the method inside a whole MOPO. Modules: `ensemble`, `sac`, `logged`, `mopo`, `fullsize`.
"""

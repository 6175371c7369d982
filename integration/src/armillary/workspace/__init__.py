"""Keeping the repository: scaffolding, release checks, and the tables made from the evidence.

Nothing here is needed to run a method; the nox sessions call these modules by name.
"""

"""Formats that demonstrations come in, each read into one dictionary of arrays an episode."""

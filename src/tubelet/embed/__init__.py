"""Features out: the vectors of every window of any number of videos, of any length."""

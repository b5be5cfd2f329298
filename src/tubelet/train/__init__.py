"""Training: a loop that knows the contract of a method and no method."""

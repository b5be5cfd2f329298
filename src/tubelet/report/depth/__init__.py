"""The page of an analysis of encoders layer by layer: a module for each of its sections."""

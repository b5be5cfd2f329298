"""What is in a folder of embeddings: windows that are alike, groups of them, and the odd ones."""

"""ULMFiT on the English that every installation already holds: the docstrings of its packages."""

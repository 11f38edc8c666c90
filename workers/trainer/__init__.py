"""How does a training run from a request to a candidate generation?

Run, preparation, stages, initial load.
"""

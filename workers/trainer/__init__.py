"""How does a training run from a request to a candidate generation?

Start, plan, stages, initial load.
"""

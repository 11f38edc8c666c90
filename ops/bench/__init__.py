"""How fast is it, and what breaks it?

Benchmarks beside a peer, and endurance runs, on services of their own.
"""

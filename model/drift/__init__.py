"""Is what arrives still what arrived before?

Monitors, the sketches they compare, and the chance that a difference is none.
"""

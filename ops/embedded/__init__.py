"""How does everything run on one machine?

The embedded database and the supervisor of all processes.
"""

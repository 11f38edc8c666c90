"""Which words do all parts share?

Records, events, SQL, settings and errors; imports nothing of the project.
"""

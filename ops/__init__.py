"""Composition root: command line, demo, corpus generator, supervision of the embedded services."""

"""Which processes run?

Intake, index worker, query worker and trainer, and the repository they share.
"""

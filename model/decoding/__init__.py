"""How does a text or an image become identifiers?

Constrained beam search, the decoder and its export, assignment, explanation.
"""

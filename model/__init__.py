"""What is computed?

Identifiers, the network, its training, decoding, retrieval and drift; no transport, no database.
"""

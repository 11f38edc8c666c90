"""What turns an embedding into an identifier?

The codebook, instance suffixes, re-clustering, and their quality.
"""

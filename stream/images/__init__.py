"""Where do an image's bytes come from, and where do they go?

Sources, decoding of hostile bytes, and the store.
"""

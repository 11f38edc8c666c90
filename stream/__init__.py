"""How do images and events get in and out?

The event log, image sources and the store, manifests, validation.
"""

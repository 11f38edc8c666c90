"""How is an installation saved, and brought back?

A backup is a folder: the database, the pictures and the generations that it names, and a manifest.
"""

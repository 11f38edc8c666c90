"""How does a folder of pictures become searchable?"""

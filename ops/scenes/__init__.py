"""Where does the demo's corpus come from?

Rendered scenes, their captions, and the base made from them.
"""

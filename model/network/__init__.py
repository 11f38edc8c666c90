"""What is the model made of?

Backbone, tokens, prompts, encoder, teacher, profiles, and the checkpoint that holds them.
"""

"""How does the model learn?

Stage 0, the three stages of the paper, their gates, and the replay of a refresh.
"""

"""What does an image file declare about its picture?

One reader a format. Each takes the pixels' part out of the file and drops all else.
"""

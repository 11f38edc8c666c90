"""What can be typed? One file for each group of commands, with its parser and what it prints."""

"""How do other papers identify images, on the same backbone as ours?"""

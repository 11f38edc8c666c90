"""How do models of others serve as encoders?

One file a family, behind `model.network.encoder.Encoder`; `reader.open_encoder` reads one by a hub
name or a folder, and `kept` what a checkpoint holds. None of them runs code of a checkpoint.
"""

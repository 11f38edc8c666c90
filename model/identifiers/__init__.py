"""Identifiers: what turns an embedding into `[id1,id2,id3,id4]`, the suffix, and how good the result is."""

"""Pure computation: identifiers, Qwen2.5-VL, training stages, trie, constrained decoding, metrics."""

"""Trie-constrained beam search."""

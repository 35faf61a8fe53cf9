"""One file an attack: something a stranger may hand over, and the sentence it has to end in.

What is trusted and what is not: docs/security-model.md.
"""

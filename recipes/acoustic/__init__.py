"""Training of the acoustic stage (SoundStorm's role): semantic tokens and a speaker prompt to codec codes.

python -m recipes.acoustic prepare --data DATA    tokens, codes and voiceprints of every recording
python -m recipes.acoustic train --data DATA      train or resume; checkpoints in the cache
python -m recipes.acoustic evaluate --data DATA   words, voices and naturalness on held-out speakers
python -m recipes.acoustic figure                 draw the training log
python -m recipes.acoustic timing                 time of a window's passes, against the machine's GEMM rate
"""

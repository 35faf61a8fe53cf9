"""Training of the codec (SoundStream's role): 16 kHz, 50 Hz, 8 levels of 1024 codes, 4 kbps.

python -m recipes.codec train --data DATA       train or resume; checkpoints in the cache
python -m recipes.codec evaluate --data DATA    PESQ, STOI and code use on held-out real speech
python -m recipes.codec figure                  draw the training log
"""

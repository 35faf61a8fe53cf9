"""The semantic language model of the demo voice: training, and its 5-gram yardstick."""

"""PyTorch reference models, written for reading. They define the arithmetic; graphs must equal them."""

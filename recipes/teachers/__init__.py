"""Third-party trained parts that teach or judge. None of their weights is ever committed or shipped."""

"""``speechssm bench``: measurements of this machine and this bundle, and the report they become."""

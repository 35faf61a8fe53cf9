"""One protocol, ``Graph``, and what implements it. Engine libraries are imported lazily."""

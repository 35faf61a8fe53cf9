"""Quality of long speech: by the minute, at the joins, and in words."""

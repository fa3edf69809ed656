"""Text, tokens, and the rows a run trains on."""

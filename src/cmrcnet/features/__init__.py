"""From pixels to tokens, and where both are kept on disk."""

"""Look at predictions in a browser: the slide, what was predicted on it, and the measured tissue behind a location."""

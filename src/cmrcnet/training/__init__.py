"""Train: collect the sections, train the network, fit its heads, calibrate them."""

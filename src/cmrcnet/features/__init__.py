"""Image features of locations on slides, extracted with a frozen encoder and cached."""

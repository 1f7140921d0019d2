"""The digits suite: a Fréchet distance and the classes of generated digits."""

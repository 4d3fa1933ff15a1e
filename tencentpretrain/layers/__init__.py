"""Building blocks that encoders, decoders and targets share."""

"""The ADM suite: FID, sFID, Inception Score, precision and recall."""

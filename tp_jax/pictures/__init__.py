"""Images: model outputs to uint8, grids and galleries, PNG files, and reading images back."""
